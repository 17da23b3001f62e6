// Scores of a block under the rules of attn/score_rules.cuh.
#pragma once
#include "attn/apply_rules.cuh"
#include "attn/key_scales.cuh"
#include "attn/raw_scores.cuh"
#include "attn/scores.cuh"
#include "attn/slopes.cuh"

// s becomes exponents; unseen keys become the lowest. If keys have scales of their own these are in
// s, with what keys add: V's logarithms, which rules must not see, are taken out meanwhile.
template <AttentionSpec S, bool Masked>
__device__ __forceinline__ void apply_rules_to(typename Shape<S>::Scores& s,
                                               const KeyScales<S>& keys,
                                               const Slopes<Shape<S>::kParts>& slope,
                                               const ScoreRules<S>& rules, const Mask<S>& mask,
                                               int block, int lane) {
  using H = Shape<S>;
  constexpr float kStart = H::kTokenK ? 0.0f : H::kScoreStart;
  const auto of_v = [&](int tile, int e) {
    if constexpr (H::kTokenV) return keys.token_log2_v(tile, e, lane);
    if constexpr (H::kSorted) return keys.section_log2_v(section_of(2 * tile), lane);
    return 0.0f;
  };
  apply_rules<S, Masked>(
      rules, mask, keys.order, block, lane,
      [&](int tile, int half, int e) {
        const float x = s[tile][2 * half + e];
        if constexpr (H::kTokenV) return (x - of_v(tile, e)) * rules.score_unit();
        return (x - kStart) * slope.at[H::part_of(tile)][half];
      },
      of_v, [&](int tile, int half, int e, float x) { s[tile][2 * half + e] = x; });
}
