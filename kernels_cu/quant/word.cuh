// The two halves, or the one float, of a 32-bit word of input, compared without conversion.
#pragma once
#include "ptx/reduce.cuh"
#include "spec.cuh"

// NaN wins over every number, as it must in a largest magnitude.
template <Type T>
__device__ __forceinline__ u32 word_min(u32 x, u32 y) {
  if constexpr (T == Type::fp16) {
    return ptx::min_nan_f16x2(x, y);
  } else if constexpr (T == Type::bf16) {
    return ptx::min_nan_bf16x2(x, y);
  } else {
    return __float_as_uint(ptx::min_nan(__uint_as_float(x), __uint_as_float(y)));
  }
}

template <Type T>
__device__ __forceinline__ u32 word_max(u32 x, u32 y) {
  if constexpr (T == Type::fp16) {
    return ptx::max_nan_f16x2(x, y);
  } else if constexpr (T == Type::bf16) {
    return ptx::max_nan_bf16x2(x, y);
  } else {
    return __float_as_uint(ptx::max_nan(__uint_as_float(x), __uint_as_float(y)));
  }
}

template <Type T>
constexpr u32 kSignBits = T == Type::fp32 ? 0x80000000u : 0x80008000u;

template <Type T>
constexpr u32 kInfBits = T == Type::fp16   ? 0x7c007c00u
                         : T == Type::bf16 ? 0x7f807f80u
                                           : 0x7f800000u;

template <Type T>
__device__ __forceinline__ u32 word_abs(u32 x) {
  return x & ~kSignBits<T>;
}
