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

// The largest finite number of a type.
template <Type Out>
__device__ constexpr float kLargest = Out == Type::fp16   ? 65504.0f
                                      : Out == Type::bf16 ? 0x1.fep127f
                                                          : 0x1.fffffep127f;

// An element of O, which is `sum` times `scale` and a number of its row: with finite ones of both
// it stays finite. Codes are rounded, so a result may exceed the type though no element of V does.
template <Type Out>
__device__ __forceinline__ float saturated(float x, float sum, float scale = 1.0f) {
  const float limit = fabsf(scale) < kInf ? kLargest<Out> : kInf;
  return fabsf(x) > limit && fabsf(sum) < kInf ? copysignf(limit, x) : x;
}

template <Type Out>
__device__ __forceinline__ float2 saturated_pair(float2 sum, float factor) {
  return {saturated<Out>(sum.x * factor, sum.x), saturated<Out>(sum.y * factor, sum.y)};
}

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
