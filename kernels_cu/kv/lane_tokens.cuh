// The tokens that a lane has of a block: eight, four of each of its warp's two units.
#pragma once
#include "kv/lane_places.cuh"

constexpr int kLaneTokens = 4 * kWarpUnits;

// Pairs of bfloat16 numbers, as float32.
__device__ __forceinline__ float lower_half(float pair) {
  return __uint_as_float(__float_as_uint(pair) << 16);
}
__device__ __forceinline__ float upper_half(float pair) {
  return __uint_as_float(__float_as_uint(pair) & 0xffff0000u);
}
__device__ __forceinline__ float4 lower_halves(const float4& x) {
  return make_float4(lower_half(x.x), lower_half(x.y), lower_half(x.z), lower_half(x.w));
}
__device__ __forceinline__ float4 upper_halves(const float4& x) {
  return make_float4(upper_half(x.x), upper_half(x.y), upper_half(x.z), upper_half(x.w));
}

template <DecodeSpec S>
struct LaneTokens {
  const u8* units;     // as LanePlaces has them, of the block's stage
  const u8* own_unit;
  int lower;           // of nested codes, from there to the same with the lower halves
  u32 fine;            // a bit for each of the warp's units that has them

  __device__ __forceinline__ float4 four(int unit, int at, int group) const {
    return *reinterpret_cast<const float4*>(units + unit * Unit<S>::kBytes + to_numbers(unit) +
                                            at + group * Unit<S>::kScaleBytes);
  }

  // Scales of K and, of nested codes, zero points.
  __device__ __forceinline__ float4 k_scale(int unit, int group) const {
    const float4 x = four(unit, Unit<S>::kKScale, group);
    return S.nested ? lower_halves(x) : x;
  }
  __device__ __forceinline__ float4 k_zero(int unit, int group) const {
    return upper_halves(four(unit, Unit<S>::kKScale, group));
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

  // Those of the token whose numbers of V the lane makes, of the only group.
  __device__ __forceinline__ float own_scale(int lane) const {
    const float x = own(Unit<S>::kVScale, lane);
    return S.nested ? lower_half(x) : x;
  }
  __device__ __forceinline__ float own_zero(int lane) const {
    if constexpr (S.nested) return upper_half(own(Unit<S>::kVScale, lane));
    return own(Unit<S>::kVZero, lane);
  }

 private:
  // To where a unit's numbers are.
  __device__ __forceinline__ int to_numbers(int unit) const {
    return S.nested && (fine >> unit & 1) ? lower : 0;
  }
  __device__ __forceinline__ float own(int at, int lane) const {
    return *reinterpret_cast<const float*>(own_unit + to_numbers(lane / kUnitTokens) + at);
  }
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
