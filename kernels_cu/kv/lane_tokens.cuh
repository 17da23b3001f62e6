// The tokens that a lane has of a block: eight, four of each of its warp's two units.
#pragma once
#include "kv/decode_shape.cuh"

constexpr int kLaneTokens = 4 * kWarpUnits;

// Pairs of bfloat16 numbers, as float32.
__device__ __forceinline__ float4 lower_halves(const float4& x) {
  const auto lower = [](float pair) { return __uint_as_float(__float_as_uint(pair) << 16); };
  return make_float4(lower(x.x), lower(x.y), lower(x.z), lower(x.w));
}
__device__ __forceinline__ float4 upper_halves(const float4& x) {
  const auto upper = [](float pair) {
    return __uint_as_float(__float_as_uint(pair) & 0xffff0000u);
  };
  return make_float4(upper(x.x), upper(x.y), upper(x.z), upper(x.w));
}

template <DecodeSpec S>
struct LaneTokens {
  const u8* units;  // the warp's
  const u8* lower;  // of nested codes, the same with the lower halves
  u32 fine;         // a bit for each of the warp's units that has them
  int lane;

  __device__ __forceinline__ float4 four(int unit, int at, int group) const {
    const u8* from = S.nested && (fine >> unit & 1) ? lower : units;
    return *reinterpret_cast<const float4*>(from + unit * Unit<S>::kBytes + at +
                                            group * Unit<S>::kScaleBytes + lane % 4 * 16);
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
    for_numbers(Unit<S>::kVScale, group, f,
                [](const float4& x) { return S.nested ? lower_halves(x) : x; });
  }
  template <class F>
  __device__ __forceinline__ void for_v_zeros(int group, F f) const {
    for_numbers(S.nested ? Unit<S>::kVScale : Unit<S>::kVZero, group, f,
                [](const float4& x) { return S.nested ? upper_halves(x) : x; });
  }

 private:
  template <class F, class Read>
  __device__ __forceinline__ void for_numbers(int at, int group, F f, Read read) const {
#pragma unroll
    for (int unit = 0; unit < kWarpUnits; ++unit) {
      const float4 x = read(four(unit, at, group));
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
