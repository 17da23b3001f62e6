// Elements of O, stored two at a time, and what keeps them finite.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/reduce.cuh"
#include "spec.cuh"

template <Type T>
struct ElementOf {
  using type = u16;
};
template <>
struct ElementOf<Type::fp32> {
  using type = f32;
};

// Two neighbours as they are stored: in one word if they have 16 bits.
template <Type Out>
using StoredPair = typename Choice<Out == Type::fp32, float2, u32>::type;

template <Type Out>
__device__ __forceinline__ StoredPair<Out> pack_pair(float2 x) {
  if constexpr (Out == Type::fp32) {
    return x;
  } else {
    return Out == Type::fp16 ? ptx::pack_f16x2(x.x, x.y) : ptx::pack_bf16x2(x.x, x.y);
  }
}

template <Type Out>
__device__ __forceinline__ void store_pair(typename ElementOf<Out>::type* to, float2 x) {
  *reinterpret_cast<StoredPair<Out>*>(to) = pack_pair<Out>(x);
}

// Eight neighbours of 16 bits, at a multiple of 16 bytes.
template <Type Out>
__device__ __forceinline__ void store_eight(typename ElementOf<Out>::type* to,
                                            const StoredPair<Out> (&pair)[4]) {
  if constexpr (Out != Type::fp32) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
  }
}

// The largest finite number of a type.
template <Type Out>
__device__ constexpr float kLargest = Out == Type::fp16   ? 65504.0f
                                      : Out == Type::bf16 ? 0x1.fep127f
                                                          : 0x1.fffffep127f;

// An element of O, which is `sum` times `scale` and a number of its row: with finite ones of both
// it stays finite. Codes are rounded, so a result may exceed the type though no element of V does.
template <Type Out>
__device__ __forceinline__ float saturated(float x, float sum, float scale) {
  // What is of float16's size is no infinite float unless its sum or its scale is.
  constexpr bool kOfX = Out == Type::fp16;
  const float limit = kOfX || fabsf(scale) < kInf ? kLargest<Out> : kInf;
  return fabsf(x) > limit && fabsf(kOfX ? x : sum) < kInf ? copysignf(limit, x) : x;
}

template <Type Out>
__device__ __forceinline__ float2 saturated(float2 x, float2 sum, float2 scale) {
  return {saturated<Out>(x.x, sum.x, scale.x), saturated<Out>(x.y, sum.y, scale.y)};
}

// Whether all elements are finite, as they mostly are, in fewer instructions than saturation takes:
// the sum of 0 times each is NaN if not.
template <Type Out, int Count>
__device__ __forceinline__ bool all_finite(const StoredPair<Out> (&pair)[Count]) {
  if constexpr (Out == Type::fp32) {
    float sum = 0.0f;
#pragma unroll
    for (const float2& x : pair) sum = __fmaf_rn(x.x, 0.0f, __fmaf_rn(x.y, 0.0f, sum));
    return sum == 0.0f;
  } else {
    u32 sum = 0;
#pragma unroll
    for (const u32 x : pair) {
      sum = Out == Type::fp16 ? ptx::fma_f16x2(x, 0, sum) : ptx::fma_bf16x2(x, 0, sum);
    }
    return sum == 0;
  }
}
