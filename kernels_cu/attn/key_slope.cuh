// What rules add to scores that is linear in the key: kLinear, and exponents in multiples of its
// slope: kSlopeUnits.
#pragma once
#include "attn/mask.cuh"

template <auto S>
struct KeySlope {
  // What all keys add. Rules before it take the score's own bias out.
  static constexpr float kBias = kBiased<S> && !kTokenLogs<S> ? kLog2Bias : 0.0f;
  static constexpr float kRest = S.rules.unshifted() ? kBias : kBias - kScoreBias<S>;
  // Scores in units of a larger slope would lose digits. ALiBi has no other way to be linear than
  // to add products to them, which does that too; an expression can be asked key by key.
  static constexpr bool kExpression = S.rules.score_slope;
  static constexpr float kLargest = kExpression ? 0x1p4f : 0x1p40f;
  static_assert(!kExpression || kSlopeUnits<S> || kColumnStarts<S>);

  float slope;    // in units of log 2, but the natural one before an expression that is not linear;
                  // of an expression NaN if it has to be asked
  int first_own;  // the key that the warp's first row stands beside

  // What all rows add for a key, and for the one that is so many further.
  __device__ __forceinline__ float of_key(int key) const {
    return kLinear<S> ? __fmaf_rn(slope, static_cast<float>(key - first_own), kRest) : kRest;
  }
  __device__ __forceinline__ float of_further_key(float of_key, float further) const {
    return kLinear<S> ? __fmaf_rn(slope, further, of_key) : of_key;
  }

  // Not one that is negative, or that scores are not to be divided by.
  __device__ __forceinline__ bool slope_is_unit() const {
    return slope >= 0x1p-40f && slope <= kLargest;
  }
  // Whether an expression is not asked key by key.
  __device__ __forceinline__ bool is_linear() const {
    return kColumnStarts<S> ? fabsf(slope) < kInf : slope_is_unit();
  }
  // What scores lack then: all before a block's first key, or its middle if they begin at the rest.
  __device__ __forceinline__ float base(int block) const {
    if (kExpression && !is_linear()) return 0.0f;
    if constexpr (kColumnStarts<S>) return of_key(block * S.block_kv + S.block_kv / 2);
    if (!kSlopeUnits<S>) return 0.0f;
    return of_key(block * S.block_kv);
  }
  // The same from there to the key that a lane's are counted from, as a multiple. The maxima of
  // lanes have to be brought together by it.
  __device__ __forceinline__ float lane_units(int lane) const {
    if constexpr (!kSlopeUnits<S>) return 0.0f;
    const float columns = static_cast<float>(first_column<S>(lane));
    return slope_is_unit() ? columns : kExpression ? 0.0f : slope * columns;
  }
};
