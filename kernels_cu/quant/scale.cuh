// From the largest magnitude of a scope to its scale; reference/quantized.py does the same.
#pragma once
#include "ptx/reduce.cuh"
#include "quant/codes.cuh"

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
