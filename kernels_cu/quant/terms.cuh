// Floats as sums of halves, whose products the tensor cores add up in float32.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/mma.cuh"
#include "spec.cuh"

// Two float16, of 11 bits each, where the input is one: they have the 22 bits that a difference of
// such numbers mostly has, and no more range: what is below 2^-24 is lost. Else three bfloat16, of
// 8 bits each: nothing is left of a normal number but what lies below 2^-126.
template <Type In>
struct Terms {
  static constexpr bool kHalf = In == Type::fp16;
  static constexpr int kCount = kHalf ? 2 : 3;
  // What keys are multiplied by, so that the difference of two float16 is one.
  static constexpr float kScale = kHalf ? 0.5f : 1.0f;

  // The terms of two floats, the largest first: the lower half of a word belongs to the first.
  static __device__ __forceinline__ void split(u32 (&term)[kCount], float low, float high) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float rounded[2];
      if constexpr (kHalf) {
        term[i] = ptx::pack_f16x2(low, high);
        ptx::widen_f16x2(rounded, term[i]);
      } else {
        term[i] = ptx::pack_bf16x2(low, high);
        ptx::widen_bf16x2(rounded, term[i]);
      }
      low -= rounded[0];  // exact, as is the next
      high -= rounded[1];
    }
  }

  // Adds the products of terms i and j with i + j < kCount, counted from 0. Sums of the smallest
  // products are kept apart, which also leaves the tensor cores with two chains of additions.
  static __device__ __forceinline__ void multiply(float (&large)[4], float (&small)[4],
                                                  const uint4 (&a)[kCount],
                                                  const u32 (&b)[kCount][2]) {
    const auto product = [&](float (&sum)[4], int i, int j) {
      const u32 operand[4] = {a[i].x, a[i].y, a[i].z, a[i].w};
      if constexpr (kHalf) {
        ptx::mma_f16(sum, operand, b[j][0], b[j][1], sum);
      } else {
        ptx::mma_bf16(sum, operand, b[j][0], b[j][1], sum);
      }
    };
    if constexpr (kHalf) {
      product(small, 1, 0);
      product(large, 0, 0);
      product(small, 0, 1);
    } else {
      product(small, 2, 0);
      product(large, 1, 0);
      product(small, 1, 1);
      product(large, 0, 1);
      product(small, 0, 2);
      product(large, 0, 0);
    }
  }
};
