// Elements of arrays of floats, whatever their type.
#pragma once
#include "ptx/convert.cuh"
#include "spec.cuh"

// A float of any type that floats are given in.
template <Type T>
__device__ __forceinline__ float widened(const void* from, i64 index) {
  if constexpr (T == Type::fp32) {
    return __ldg(static_cast<const f32*>(from) + index);
  } else {
    float x[2];
    const u32 bits = __ldg(static_cast<const u16*>(from) + index);
    T == Type::fp16 ? ptx::widen_f16x2(x, bits) : ptx::widen_bf16x2(x, bits);
    return x[0];
  }
}
