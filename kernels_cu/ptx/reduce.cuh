// Minima, maxima and sums in which a NaN wins, and reductions across the lanes of a warp.
#pragma once
#include "numeric.cuh"

namespace ptx {

__device__ __forceinline__ float max_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

__device__ __forceinline__ float min_nan(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

// The same of the two halves of a word.
#define CUATTN_PAIR(NAME, INSTRUCTION)                            \
  __device__ __forceinline__ u32 NAME(u32 x, u32 y) {             \
    u32 z;                                                        \
    asm(INSTRUCTION " %0, %1, %2;" : "=r"(z) : "r"(x), "r"(y));   \
    return z;                                                     \
  }

CUATTN_PAIR(max_nan_f16x2, "max.NaN.f16x2")
CUATTN_PAIR(min_nan_f16x2, "min.NaN.f16x2")
CUATTN_PAIR(max_nan_bf16x2, "max.NaN.bf16x2")
CUATTN_PAIR(min_nan_bf16x2, "min.NaN.bf16x2")
#undef CUATTN_PAIR

// x y + z of the two halves of a word.
#define CUATTN_PAIR(NAME, INSTRUCTION)                                        \
  __device__ __forceinline__ u32 NAME(u32 x, u32 y, u32 z) {                  \
    u32 sum;                                                                  \
    asm(INSTRUCTION " %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(y), "r"(z)); \
    return sum;                                                               \
  }

CUATTN_PAIR(fma_f16x2, "fma.rn.f16x2")
CUATTN_PAIR(fma_bf16x2, "fma.rn.bf16x2")
#undef CUATTN_PAIR

// Over aligned groups of `Lanes` lanes; every lane gets the result.
template <int Lanes>
__device__ __forceinline__ float max_across(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) {
    x = max_nan(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  return x;
}

template <int Lanes>
__device__ __forceinline__ float sum_across(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, step);
  }
  return x;
}

// Of a warp: over this lane and those below.
__device__ __forceinline__ int sum_up_to_lane(int x) {
#pragma unroll
  for (u32 step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, x, step);
    if (threadIdx.x % 32 >= step) x += other;
  }
  return x;
}

}  // namespace ptx
