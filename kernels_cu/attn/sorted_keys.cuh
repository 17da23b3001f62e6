// Sorted keys (layout.cuh) in the online softmax: each section of a lane has exponents of its own.
#pragma once
#include "attn/key_scales.cuh"
#include "attn/mask.cuh"
#include "attn/raw_scores.cuh"
#include "attn/slopes.cuh"
#include "ptx/math.cuh"

// The largest exponent of each of a lane's two rows, V's scales included; unseen keys become the
// lowest.
template <bool Masked, AttentionSpec S>
__device__ __forceinline__ void sorted_row_max(float (&m)[2], typename Shape<S>::Scores& s,
                                               const Slopes<kSections>& slope,
                                               const KeyScales<S>& keys, const Mask<S>& mask,
                                               int lane) {
  using Raw = RawScores<S>;
  const u8* places = keys.order + lane % 4 * kLanePlaces;
  float top[2];
  m[0] = m[1] = -kInf;
#pragma unroll
  for (int tile = 0; tile < Shape<S>::kKeyTiles; ++tile) {
    if (begins_section(tile)) top[0] = top[1] = Raw::lowest();
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int token = 0;
      if constexpr (Masked) {
        token = mask.ordered ? places[2 * tile + e] : 8 * tile + lane % 4 * 2 + e;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& x = s[tile][2 * half + e];
        if (Masked && !mask.sees_token(token, half)) x = Raw::lowest();
        top[half] = Raw::larger(top[half], x);
      }
    }
    if (!ends_section(tile)) continue;
    const int section = section_of(2 * tile);
    const float of_v = keys.section_log2_v(section, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float x = __fmaf_rn(top[half] - Shape<S>::kScoreStart, slope.at[section][half], of_v);
      m[half] = fmaxf(m[half], Masked && Raw::is_lowest(top[half]) ? -kInf : x);
    }
  }
#pragma unroll
  for (float& x : m) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
  }
}

// Exponentials of a lane's two rows, section by section.
template <AttentionSpec S>
struct SortedSections {
  using Raw = RawScores<S>;
  float intercept[2];  // of the section at hand: exponent = s * slope + intercept
  float sum[2];

  // Those of a pair of tiles in a row; their sum without V's scales is added to `row_sum`.
  template <bool Masked>
  __device__ __forceinline__ void exponentiate(float (&y)[4], float& row_sum,
                                               const typename Shape<S>::Scores& s, int pair,
                                               int half, const Slopes<kSections>& slope,
                                               float row_intercept, const KeyScales<S>& keys,
                                               int lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int tile = 2 * pair + i / 2;
      const int section = section_of(2 * tile);
      if (i % 2 == 0 && begins_section(tile)) {
        const float b = row_intercept + keys.section_log2_v(section, lane);
        intercept[half] = Raw::kRuled
                              ? row_intercept
                              : __fmaf_rn(-Shape<S>::kScoreStart, slope.at[section][half], b);
        sum[half] = 0.0f;
      }
      const float x = s[tile][2 * half + i % 2];
      y[i] = ptx::ex2(Raw::kUnitSlope ? x + intercept[half]
                                      : __fmaf_rn(x, slope.at[section][half], intercept[half]));
      if (Masked && Raw::is_lowest(x)) y[i] = 0.0f;
      sum[half] += y[i];
      if (i % 2 == 1 && ends_section(tile)) {
        row_sum = __fmaf_rn(sum[half], keys.section_inverse_v(section, lane), row_sum);
      }
    }
  }
};
