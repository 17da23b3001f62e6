// Arrays as a caller's expression sees them: name[i] is an element of memory without gaps.
#pragma once
#include "attn/widened.cuh"
#include "user_value.cuh"

// NVRTC has none, and it is the way to hide a key.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

template <class Element>
struct UserArray {
  const void* from;
  __device__ __forceinline__ Element operator[](i64 i) const {
    return __ldg(static_cast<const Element*>(from) + i);
  }
};

template <>
struct UserArray<bool> {
  const void* from;
  __device__ __forceinline__ bool operator[](i64 i) const {
    return __ldg(static_cast<const u8*>(from) + i) != 0;
  }
};

// Of float16 or bfloat16, as float.
template <Type T>
struct UserHalves {
  const void* from;
  __device__ __forceinline__ float operator[](i64 i) const { return widened<T>(from, i); }
};
