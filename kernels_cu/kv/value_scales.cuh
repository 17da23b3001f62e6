// What a group's scales and zero points of V are to the softmax, of the lane's tokens.
#pragma once
#include "kv/lane_tokens.cuh"
#include "ptx/math.cuh"

// Eight lanes have the same tokens. Where there is one group each lane makes the numbers of one
// token, and reads those of its own ones, which is a third of the instructions. They are made
// before the scores, whose products the special function unit works beside, and stored behind.
template <DecodeSpec S, bool Shares = kSharesNumbers<S>>
struct OwnValue {
  float log2;
  float inverse;
  float zero;

  __device__ __forceinline__ OwnValue(const LaneTokens<S>& tokens, int lane) {
    const float scale = tokens.own_scale(lane);
    log2 = ptx::lg2(scale);
    inverse = ptx::rcp(scale);
    if constexpr (Unit<S>::kHasVZero) zero = tokens.own_zero(lane) * inverse;
  }

  // For all lanes to read.
  __device__ __forceinline__ void store(const LanePlaces<S>& at) const {
    at.own_value[0] = log2;
    at.own_value[kWarpSize] = inverse;
    if constexpr (Unit<S>::kHasVZero) at.own_value[2 * kWarpSize] = zero;
    __syncwarp();
  }
};
template <DecodeSpec S>
struct OwnValue<S, false> {
  __device__ __forceinline__ OwnValue(const LaneTokens<S>&, int) {}
  __device__ __forceinline__ void store(const LanePlaces<S>&) const {}
};

template <DecodeSpec S>
struct ValueScales {
  static constexpr int kGroups = Unit<S>::kVGroups;
  float log2[kLaneTokens];     // V's scale rides in the exponent
  float inverse[kLaneTokens];  // and leaves the row sum again
  float zero[kLaneTokens];     // zero points in units of the scales

  __device__ __forceinline__ void load_log2(const LanePlaces<S>& at, const LaneTokens<S>& tokens,
                                            int group) {
    if constexpr (kSharesNumbers<S>) {
      load(log2, at, 0);
    } else {
      tokens.for_v_scales(group, [&](int i, float scale) { log2[i] = ptx::lg2(scale); });
    }
  }

  __device__ __forceinline__ void load_others(const LanePlaces<S>& at, const LaneTokens<S>& tokens,
                                              int group) {
    if constexpr (kSharesNumbers<S>) {
      load(inverse, at, 1);
      if constexpr (Unit<S>::kHasVZero) load(zero, at, 2);
    } else {
      tokens.for_v_scales(group, [&](int i, float scale) { inverse[i] = ptx::rcp(scale); });
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
  }

 private:
  // The lane's tokens' `kind` of number that has been stored.
  static __device__ __forceinline__ void load(float (&to)[kLaneTokens], const LanePlaces<S>& at,
                                              int kind) {
#pragma unroll
    for (int unit = 0; unit < kWarpUnits; ++unit) {
      const float4 x = *reinterpret_cast<const float4*>(at.values + kind * kWarpSize +
                                                        unit * kUnitTokens);
      to[4 * unit] = x.x;
      to[4 * unit + 1] = x.y;
      to[4 * unit + 2] = x.z;
      to[4 * unit + 3] = x.w;
    }
  }
};
