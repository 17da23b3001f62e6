// Rules of scores, over the keys of a block.
#pragma once
#include "attn/score_rules.cuh"

// The scores of a block become exponents: score(tile, half, e) is one of a lane's in score_unit(),
// added(tile, e) what its key adds behind the rules, put(tile, half, e, x) takes the exponent.
// `order` has the tokens of a sorted block by their places.
template <auto S, bool Masked, class Score, class Added, class Put>
__device__ __forceinline__ void apply_rules(const ScoreRules<S>& rules, const Mask<S>& mask,
                                            const u8* order, int block, int lane, Score score,
                                            Added added, Put put) {
  constexpr bool kTokens =
      S.rules.alibi || S.rules.biased() || S.rules.score_mod || Masked;
  const u8* places = order + lane % 4 * kLanePlaces;
  // Tokens are counted from the lane's first column, or in sorted blocks from their own first.
  const int first = Mask<S>::kSorted ? 0 : lane % 4 * 2;
  const float of_first = rules.of_key(block * S.block_kv + first);
  constexpr bool kBias = Masked && S.rules.biased() && !S.rules.score_mod;
#pragma unroll
  for (int tile = 0; tile < S.block_kv / 8; ++tile) {
    float2 pair[2];
    if constexpr (kBias && !Mask<S>::kSorted) {
      const int key = block * S.block_kv + first + 8 * tile;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        pair[half] = rules.mask.bias_of_pair(half, key, rules.seqlen_kv);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int token = 8 * tile + e;
      if constexpr (kTokens && Mask<S>::kSorted) {
        token = mask.ordered ? places[2 * tile + e] : token + lane % 4 * 2;
      }
      const int key = block * S.block_kv + first + token;
      const float of_key =
          rules.of_further_key(of_first, static_cast<float>(token)) + added(tile, e);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bool sees = true;
        if constexpr (Masked) {
          sees = Mask<S>::kSorted ? mask.sees_token(token, half) : mask.sees(tile, 2 * half + e);
        }
        float x = -kInf;
        if (sees) {
          x = rules.template apply<Masked>(score(tile, half, e), of_key, half, key);
        }
        if constexpr (kBias) {
          float bias = e == 0 ? pair[half].x : pair[half].y;
          if constexpr (Mask<S>::kSorted) bias = rules.mask.bias(half, key, rules.seqlen_kv);
          // What is hidden may be NaN.
          x = sees && bias != -kInf ? __fmaf_rn(kLog2e, bias, x) : -kInf;
        }
        put(tile, half, e, x);
      }
    }
  }
}
