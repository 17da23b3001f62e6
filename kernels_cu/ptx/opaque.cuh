// Hides how a value came about.
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

}  // namespace ptx
