// The tokens that a lane has of a block: eight, four of each of its warp's two units.
#pragma once
#include "kv/decode_shape.cuh"

constexpr int kLaneTokens = 4 * kWarpUnits;

template <DecodeSpec S>
struct LaneTokens {
  const u8* units;  // the warp's
  int lane;

  __device__ __forceinline__ float4 four(int unit, int at, int group) const {
    return *reinterpret_cast<const float4*>(units + unit * Unit<S>::kBytes + at +
                                            group * Unit<S>::kScaleBytes + lane % 4 * 16);
  }
  __device__ __forceinline__ float4 k_scale(int unit, int group) const {
    return four(unit, Unit<S>::kKScale, group);
  }

  // Call f(number of the token among the eight, its V scale or zero point of a group).
  template <class F>
  __device__ __forceinline__ void for_v_scales(int group, F f) const {
    for_numbers(Unit<S>::kVScale, group, f);
  }
  template <class F>
  __device__ __forceinline__ void for_v_zeros(int group, F f) const {
    for_numbers(Unit<S>::kVZero, group, f);
  }

 private:
  template <class F>
  __device__ __forceinline__ void for_numbers(int at, int group, F f) const {
#pragma unroll
    for (int unit = 0; unit < kWarpUnits; ++unit) {
      const float4 x = four(unit, at, group);
      f(4 * unit, x.x);
      f(4 * unit + 1, x.y);
      f(4 * unit + 2, x.z);
      f(4 * unit + 3, x.w);
    }
  }
};

// Element e of the lane's four of a unit, of the upper (0) or lower (1) row of a tile. A unit is
// two MMA columns, of which the lane has two tokens each: those of four adjacent slots.
template <DecodeSpec S>
__device__ __forceinline__ float& score_of(float (&s)[DecodeShape<S>::kKeyTiles][4], int unit,
                                           int e, int half) {
  return s[2 * unit + e / 2][2 * half + e % 2];
}

// The number of that token inside its unit.
__device__ __forceinline__ int token_of(int e, int lane) {
  return e / 2 * 8 + lane % 4 * 2 + e % 2;
}
