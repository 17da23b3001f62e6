// Codes of 8 bits, of either type.
#pragma once
#include "ptx/convert.cuh"
#include "spec.cuh"

// What the largest magnitude of a scope becomes.
template <Type T>
constexpr float kLargestCode = T == Type::e4m3 ? 448.0f : 127.0f;

// NaN becomes 0: it is in the scale.
template <Type T>
__device__ __forceinline__ u32 pack_codes(float x0, float x1, float x2, float x3) {
  static_assert(is_code(T));
  if constexpr (T == Type::e4m3) {
    const auto number = [](float x) { return x == x ? x : 0.0f; };
    return ptx::pack_e4m3x4(number(x0), number(x1), number(x2), number(x3));
  } else {
    return ptx::pack_s8x4(x0, x1, x2, x3);
  }
}
