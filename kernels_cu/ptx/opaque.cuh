// Hides from the compiler how a value came about, or that it depends on nothing else.
#pragma once
#include "numeric.cuh"

namespace ptx {

// Keeps the compiler from computing a loop-invariant value again in every iteration, which for
// values of threadIdx means a slow read of a special register.
template <class T>
__device__ __forceinline__ T opaque(T x) {
  static_assert(sizeof(T) == 4);
  asm volatile("" : "+r"(x));
  return x;
}

// 0, made from an integer that is not negative; of that the compiler knows nothing.
__device__ __forceinline__ u32 hidden_zero(int x) { return static_cast<u32>(x >> 31); }

// x, but not before y is there: ptxas moves instructions past anything but a dependence. `zero` is
// a hidden one.
__device__ __forceinline__ u32 after(u32 x, float y, u32 zero) {
  return x ^ (__float_as_uint(y) & zero);
}
__device__ __forceinline__ float after(float x, float y, u32 zero) {
  return __uint_as_float(after(__float_as_uint(x), y, zero));
}

}  // namespace ptx
