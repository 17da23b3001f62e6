// Elements of O, stored two at a time.
#pragma once
#include "ptx/convert.cuh"
#include "spec.cuh"

template <Type T>
struct ElementOf {
  using type = u16;
};
template <>
struct ElementOf<Type::fp32> {
  using type = f32;
};

// Two neighbours in one word of a 16-bit type.
template <Type Out>
__device__ __forceinline__ u32 pack_pair(float2 x) {
  return Out == Type::fp16 ? ptx::pack_f16x2(x.x, x.y) : ptx::pack_bf16x2(x.x, x.y);
}

template <Type Out>
__device__ __forceinline__ void store_pair(typename ElementOf<Out>::type* to, float2 x) {
  if constexpr (Out == Type::fp32) {
    *reinterpret_cast<float2*>(to) = x;
  } else {
    *reinterpret_cast<u32*>(to) = pack_pair<Out>(x);
  }
}
