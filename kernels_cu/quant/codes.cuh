// Codes of 8 and 4 bits, of any type, and their scales; reference/quantized.py makes the same.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/reduce.cuh"
#include "spec.cuh"

// What the largest magnitude of a scope becomes.
template <Type T, int Bits>
constexpr float kLargestCode = T == Type::e4m3 ? 448.0f : Bits == 4 ? 7.0f : 127.0f;

// The smallest maximum that a scale is made of: a zero row gets a tiny scale, never 1, because V's
// scale takes part in the maximum of its block. Not smaller, because attention's row sum holds the
// inverse of V's scale, times 255 and the number of keys.
constexpr float kAmaxFloor = 0x1p-64f;

// Of codes of a type, whose integers have a number of bits.
template <Type T, int Bits>
struct Scaling {
  // What multiplies an element to give its code. NaN stays NaN, which becomes the code 0.
  static __device__ __forceinline__ float factor(float amax) {
    return __fdiv_rn(kLargestCode<T, Bits>, ptx::max_nan(amax, kAmaxFloor));
  }

  static __device__ __forceinline__ float scale(float amax) {
    return __fdiv_rn(ptx::max_nan(amax, kAmaxFloor), kLargestCode<T, Bits>);
  }
};

// One code a byte; NaN becomes 0: it is in the scale.
template <Type T>
__device__ __forceinline__ u32 pack_codes(float x0, float x1, float x2, float x3) {
  static_assert(is_code(T));
  if constexpr (T == Type::e4m3) {
    const auto number = [](float x) { return x == x ? x : 0.0f; };
    return ptx::pack_e4m3x4(number(x0), number(x1), number(x2), number(x3));
  } else {
    return ptx::pack_s8x4(x0, x1, x2, x3);
  }
}

// Words of four codes each, by two to words of eight codes of 4 bits.
template <int Words>
__device__ __forceinline__ void pack_halves(u32 (&to)[Words / 2], const u32 (&from)[Words]) {
  // The second code of each pair beside the first, in bytes 0 and 2.
  const auto pairs = [](u32 x) { return (x & 0x000f000fu) | (x >> 4 & 0x00f000f0u); };
#pragma unroll
  for (int i = 0; i < Words / 2; ++i) {
    to[i] = __byte_perm(pairs(from[2 * i]), pairs(from[2 * i + 1]), 0x6420);
  }
}
