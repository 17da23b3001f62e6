// Scores of a block under the rules of attn/score_rules.cuh.
#pragma once
#include "attn/apply_rules.cuh"
#include "attn/slopes.cuh"
#include "sm90/sorted_scores.cuh"

template <WgmmaSpec S>
struct RuledScores {
  using H = TileShape<S>;
  using Raw = GroupScores<S>;
  using Acc = typename Raw::Acc;

  // s becomes the bits of exponents; unseen keys become the lowest. `slope` is from a score to one
  // in units of the rules, unless keys have scales of their own.
  template <bool Masked>
  static __device__ __forceinline__ void apply(typename Raw::Scores& s, const TokenScales<S>& keys,
                                               const float (&row_scale)[2],
                                               const Slopes<H::kParts>& slope,
                                               const ScoreRules<S>& rules, const Mask<S>& mask,
                                               int block, int group, int lane) {
    apply_rules<S, Masked>(
        rules, mask, keys.order, block, lane,
        [&](int tile, int half, int e) {
          const float x = static_cast<float>(s[4 * tile + 2 * half + e]);
          const int slot = 16 * (tile / 2) + 4 * (lane % 4) + 2 * (tile % 2) + e;
          float y = x * slope.at[H::part_of(tile)][half];
          if constexpr (H::kThreadK) y = x * (row_scale[half] * keys.k[tile / 8 * 4 + lane % 4]);
          if constexpr (H::kTokenK && !H::kThreadK) y = x * keys.k[slot] * row_scale[half];
          if constexpr (S.q_smooth) y += keys.delta[group][slot];
          if constexpr (H::kTokenK) y *= rules.score_unit();
          return y;
        },
        [&](int tile, int e) {
          const int slot = 16 * (tile / 2) + 4 * (lane % 4) + 2 * (tile % 2) + e;
          if constexpr (H::kTokenV) return keys.log2_v[slot];
          if constexpr (H::kSorted) {
            return SortedScores<S>::log2_v(keys, section_of(2 * tile), lane);
          }
          return 0.0f;
        },
        [&](int tile, int half, int e, float x) {
          Acc& to = s[4 * tile + 2 * half + e];
          if constexpr (H::kIntegerScores) {
            to = __float_as_int(x);
          } else {
            to = x;
          }
        });
  }
};
