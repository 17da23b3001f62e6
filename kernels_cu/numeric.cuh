// The few names that NVRTC lacks, and others that all share.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
using f32 = float;

constexpr int kWarpSize = 32;
constexpr int kWarpgroupSize = 128;
constexpr float kInf = __builtin_bit_cast(float, 0x7f800000u);
constexpr float kNaN = __builtin_bit_cast(float, 0x7fc00000u);
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kLog2e = 1.44269504088896341f;

// 1.5 * 2^23. An int32 accumulator that starts from these bits holds, read as a float, exactly
// kMagic + a for every |a| < 2^22: the conversion to float costs nothing. docs/numerics.md has the
// bounds: a score of up to 256 channels, 127 * 127 * 256, and one block of P V, 255 * 127 * 128,
// both stay below 2^22.
constexpr float kMagic = 12582912.0f;

template <bool B>
struct Bool {
  static constexpr bool value = B;
};

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Of numbers that are not negative: their signs would take as much code again.
__device__ __forceinline__ int quotient(int a, int b) {
  return static_cast<int>(static_cast<u32>(a) / static_cast<u32>(b));
}
__device__ __forceinline__ int remainder_of(int a, int b) {
  return static_cast<int>(static_cast<u32>(a) % static_cast<u32>(b));
}

template <class T>
__host__ __device__ constexpr T min_of(T a, T b) {
  return a < b ? a : b;
}

template <class T>
__host__ __device__ constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}

// The one of two objects that a condition chooses.
template <bool First, class A, class B>
__device__ __forceinline__ auto& either(A& a, B& b) {
  if constexpr (First) {
    return a;
  } else {
    return b;
  }
}

// The one of two types that a condition chooses.
template <bool First, class A, class B>
struct Choice {
  using type = A;
};
template <class A, class B>
struct Choice<false, A, B> {
  using type = B;
};

// What tensor cores add up products of integers in, and those of floats.
template <bool Integer>
using Accumulator = typename Choice<Integer, int, float>::type;

// The driver's CUtensorMap: what cp.async.bulk.tensor has to know of an array, as the driver writes
// it for cuattn/compile/tensor_map.py. A kernel takes it by value, as a __grid_constant__, and uses
// nothing of it but its address.
struct alignas(64) TensorMap {
  u64 opaque[16];
};
