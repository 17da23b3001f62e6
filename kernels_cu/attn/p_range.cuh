// What P, and with it O and the row sums, are relative to.
#pragma once
#include "spec.cuh"

// Steps that P = 1 is cut into, and their logarithm, which is added in the exponent.
template <auto S>
__device__ constexpr float kStepsLog2 = S.pv == Type::e4m3               ? 8.80735492206f
                                        : S.pv != Type::int8             ? 0.0f
                                        : S.p_range == PRange::static127 ? 6.98868468677f
                                                                         : 7.99435343686f;

// Stands for the maximum of a row that has seen no key. It is finite so that no difference of two
// maxima is NaN, and so low that 2^(it - any score) is 0.
constexpr float kNoKeySeen = -1e30f;

// With p_range = block nothing needs the running maximum: O and the row sum are kept relative to a
// reference that moves only when a block exceeds it by this many powers of two. A block's row sum
// is at most 2^86, where V's scales per token, which it is divided by, are the least that there are
// (2^-71): that leaves room for 2^11 blocks below the largest float.
constexpr float kHeadroom = 30.0f;

// With p_range = row_pow2 the first reference is above the first maximum by this, so that fewer of
// the later blocks move it: log2(255 / 152), of which P at the maximum is 152 and not rounded
// (cuattn/reference/softmax.py).
constexpr float kFirstHeadroom = 0.746425923f;

// Where a row's reference goes when a block's maximum exceeds it.
template <PRange R>
__device__ __forceinline__ float next_reference(float reference, float block_max) {
  if constexpr (R == PRange::row_pow2) {
    // After the first block in whole steps, which integers are shifted by.
    return reference == kNoKeySeen ? fmaxf(reference, block_max + kFirstHeadroom)
                                   : reference + ceilf(fmaxf(block_max - reference, 0.0f));
  }
  return fmaxf(reference, block_max);
}
