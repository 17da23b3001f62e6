// Rules of scores, over the keys of a block.
#pragma once
#include "attn/block_tokens.cuh"
#include "attn/score_rules.cuh"

// The scores of a block become exponents, of which key_part(tile, e) is what all rows add for a
// key; the other arguments are those of `apply_rules`.
template <auto S, bool Masked, bool Expressed, class Score, class Put, class KeyPart>
__device__ __forceinline__ void apply_to_keys(const ScoreRules<S>& rules, const Mask<S>& mask,
                                              BlockTokens<S>& tokens, int first_key, Score score,
                                              Put put, KeyPart key_part) {
  constexpr bool kBias = Masked && S.rules.biased() && !S.rules.score_mod;
#pragma unroll
  for (int tile = 0; tile < S.block_kv / 8; ++tile) {
    tokens.come_to(tile);
    float2 pair[2];
    if constexpr (kBias && !Mask<S>::kSorted) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        pair[half] = rules.mask.bias_of_pair(half, first_key + 8 * tile, rules.seqlen_kv);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = tokens.number(tile, e);
      const int key = first_key + token;
      const float of_key = key_part(tile, e);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bool sees = true;
        if constexpr (Masked) {
          sees = Mask<S>::kSorted ? mask.sees_token(token, half) : mask.sees(tile, 2 * half + e);
        }
        float x = -kInf;
        if (sees) {
          x = rules.template apply<Masked, Expressed>(score(tile, half, e), of_key, half, key);
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

// The scores of a block become exponents: score(tile, half, e) is one of a lane's in score_unit(),
// added(tile, e) what its key adds behind the rules, put(tile, half, e, x) takes the exponent.
// `order` has the tokens of a sorted block by their places.
template <auto S, bool Masked, class Score, class Added, class Put>
__device__ __forceinline__ void apply_rules(const ScoreRules<S>& rules, const Mask<S>& mask,
                                            const u8* order, int block, int lane, Score score,
                                            Added added, Put put) {
  // A 0 that is added the compiler may not leave out.
  constexpr bool kLogs = kTokenLogs<S> || kSortedLogs<S>;
  constexpr float kOffset = BlockTokens<S>::kOffset;
  BlockTokens<S> tokens(order, mask.ordered, rules.seqlen_kv, lane);
  const int first = block * S.block_kv + first_column<S>(lane);
  const auto apply = [&](auto key_part) {
    apply_to_keys<S, Masked, S.rules.score_mod && !S.rules.score_slope>(rules, mask, tokens, first,
                                                                        score, put, key_part);
  };
  if constexpr (kSlopeUnits<S>) {
    const float inverse = rules.score_unit();
    if (rules.slope_is_unit()) {
      apply([&](int tile, int e) {
        const float rest = (kLogs ? added(tile, e) * inverse : 0.0f) - kOffset;
        const float shifted = tokens.shifted(tile, e);
        return Mask<S>::kSorted ? shifted + rest : shifted;
      });
    } else if constexpr (S.rules.score_slope) {
      constexpr float kRest = ScoreRules<S>::kRest;
      apply_to_keys<S, Masked, true>(
          rules.anew(), mask, tokens, first, score, put,
          [&](int tile, int e) { return kLogs ? kRest + added(tile, e) : kRest; });
    } else {
      apply([&](int tile, int e) {
        const float rest = kLogs ? added(tile, e) : 0.0f;
        return __fmaf_rn(rules.slope, tokens.shifted(tile, e) - kOffset, rest);
      });
    }
  } else {
    const float of_first = rules.of_key(first);
    apply([&](int tile, int e) {
      const float x = rules.of_further_key(of_first, tokens.shifted(tile, e) - kOffset);
      return kLogs ? x + added(tile, e) : x;
    });
  }
}
