// A caller's expression that would be linear in the key, but is not finite.
#pragma once
#include "attn/block_tokens.cuh"
#include "attn/score_rules.cuh"
#include "sm90/group_scores.cuh"

// Its keys are hidden, or make their row NaN, whatever their scores: the lowest, or what all
// exponents of are NaN.
template <WgmmaSpec S>
__device__ __forceinline__ void ask_scores(typename GroupScores<S>::Scores& s,
                                           const TokenScales<S>& keys, const ScoreRules<S>& rules,
                                           bool ordered, int block, int lane) {
  const ScoreRules<S> asked = rules.anew();
  BlockTokens<S> tokens(keys.order, ordered, rules.seqlen_kv, lane);
  const int first = block * S.block_kv + first_column<S>(lane);
#pragma unroll
  for (int tile = 0; tile < S.block_kv / 8; ++tile) {
    tokens.come_to(tile);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float x = asked.mask.user.score(0.0f, half, first + tokens.number(tile, e));
        s[4 * tile + 2 * half + e] =
            x == -kInf ? GroupScores<S>::lowest() : __float_as_int(kNaN);
      }
    }
  }
}
