// What a group's scales and zero points of V are to the softmax, of the lane's tokens.
#pragma once
#include "kv/lane_tokens.cuh"
#include "ptx/math.cuh"

template <DecodeSpec S>
struct ValueScales {
  static constexpr int kGroups = Unit<S>::kVGroups;
  float log2[kLaneTokens];     // V's scale rides in the exponent
  float inverse[kLaneTokens];  // and leaves the row sum again
  float zero[kLaneTokens];     // zero points in units of the scales

  __device__ __forceinline__ void load(const LaneTokens<S>& tokens, int group) {
    tokens.for_v_scales(group, [&](int i, float scale) {
      log2[i] = ptx::lg2(scale);
      inverse[i] = ptx::rcp(scale);
    });
    if constexpr (Unit<S>::kHasVZero) {
      tokens.for_v_zeros(group, [&](int i, float x) { zero[i] = x * inverse[i]; });
    }
    // The first group's P makes the row sum, in which every scale that is not finite must show,
    // though P's code of NaN is 0.
#pragma unroll
    for (int other = 1; other < (group == 0 ? kGroups : 0); ++other) {
      tokens.for_v_scales(other, [&](int i, float scale) {
        inverse[i] = __fmaf_rn(scale, 0.0f, inverse[i]);
      });
    }
  }
};
