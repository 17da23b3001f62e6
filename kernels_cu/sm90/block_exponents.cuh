// From the scores of a block to exponents of base 2: by a slope, or by what rules and scales say.
#pragma once
#include "attn/slopes.cuh"
#include "sm90/asked_scores.cuh"
#include "sm90/capped_scores.cuh"
#include "sm90/column_starts.cuh"
#include "sm90/key_exponents.cuh"
#include "sm90/ruled_scores.cuh"

template <WgmmaSpec S>
struct BlockExponents {
  using H = TileShape<S>;
  using Raw = GroupScores<S>;
  using Scores = typename Raw::Scores;

  Slopes<H::kParts> slope;  // exponent = s * slope + base, where rules leave it at that
  float base;               // of a block, with what is linear in the key only
  ColumnStarts<S> starts;   // with kColumnStarts
  typename CapOf<S, Raw::kCapped>::Type cap;

  // s becomes exponents where scales of tokens, or rules, ask for it.
  template <bool Masked>
  __device__ __forceinline__ void begin(Scores& s, const float (&row_scale)[2],
                                        const TokenScales<S>& keys, const ScoreRules<S>& rules,
                                        const Mask<S>& mask, int block, int group, int lane) {
    slope.set([&](int part, int half) {
      const float of_keys = H::kSorted         ? SortedScores<S>::k_scale(keys, part, lane)
                            : H::kScaledScores ? keys.k[0]
                                               : 1.0f;
      float x = H::kTokenK ? 1.0f : row_scale[half] * of_keys;
      // In that of a slope rows have it already.
      if constexpr (S.rules.change_scores() && !kSlopeUnits<S> && !kColumnStarts<S>) {
        x *= rules.score_unit();
      }
      return x;
    });
    if constexpr (Raw::kRuled) {
      RuledScores<S>::template apply<Masked>(s, keys, row_scale, slope, rules, mask, block, group,
                                             lane);
      slope.set([&](int, int) { return rules.unit(); });
      base = rules.base(block);
    } else if constexpr (kColumnStarts<S>) {
      base = rules.base(block);
      if (starts.is_coarse) {
        if (S.rules.score_slope && !__all_sync(0xffffffffu, rules.is_linear())) {
          ask_scores<S>(s, keys, rules, mask.ordered, block, lane);
        } else {
          starts.refit(s, slope, rules.slope, lane);
        }
      }
    } else if constexpr (H::kTokenK) {
      apply_key_scales<S>(s, keys, row_scale, group, lane);
    }
  }

  // `top` has the largest scores of each of a lane's rows, of all keys or of sections.
  template <bool Masked, class Tops>
  __device__ __forceinline__ void know_maxima(Scores& s, Tops& top, const ScoreRules<S>& rules) {
    if constexpr (Raw::kCapped) cap.template begin<Masked>(s, top, slope, rules);
  }

  // With kColumnStarts scores come with kStart, and maxima without the base.
  __device__ __forceinline__ void settle(float& intercept, float& block_max, int half) const {
    if constexpr (!H::kSorted) intercept = (*this)(0, half, -Raw::kStart, intercept);
    block_max += base;
  }

  // Of what is in the place of a score of some part of the block, with something added.
  __device__ __forceinline__ float operator()(int part, int half, float x, float added) const {
    if constexpr (Raw::kCapped) {
      return cap.exponent(part, half, x, added);
    } else {
      return Raw::kUnitSlope ? x + added : __fmaf_rn(x, slope.at[part][half], added);
    }
  }
};
