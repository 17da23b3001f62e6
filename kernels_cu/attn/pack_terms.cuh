// Four probabilities of a row, rounded to the bytes or halves that P V takes.
#pragma once
#include "attn/p_range.cuh"
#include "ptx/convert.cuh"

// P in 8 bits: a word for each term. `y` counts steps.
template <auto S>
__device__ __forceinline__ void pack_terms(u32 (&word)[kTerms<S>], const float (&y)[4],
                                           const AttentionParams& p) {
  if constexpr (S.pv == Type::e4m3) {
    word[0] = ptx::pack_e4m3x4(y[0], y[1], y[2], y[3]);
  } else if constexpr (S.p_range == PRange::twin) {
    const float split = 127.0f * p.inverse_twin;
    float above[4], below[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      above[i] = y[i] < split ? 0.0f : y[i];
      below[i] = y[i] < split ? y[i] * p.twin : 0.0f;
    }
    word[0] = ptx::pack_u8x4(above[0], above[1], above[2], above[3]);
    word[1] = ptx::pack_u8x4(below[0], below[1], below[2], below[3]);
  } else if constexpr (S.p_terms == 2) {
    ptx::split_u16x4(word[0], word[1], y[0], y[1], y[2], y[3]);
  } else {
    word[0] = ptx::pack_u8x4(y[0], y[1], y[2], y[3]);
  }
}

// P in 16 bits: two words, of two neighbours each.
template <auto S>
__device__ __forceinline__ void pack_halves(u32 (&word)[2], const float (&y)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    word[i] = S.pv == Type::fp16 ? ptx::pack_f16x2(y[2 * i], y[2 * i + 1])
                                 : ptx::pack_bf16x2(y[2 * i], y[2 * i + 1]);
  }
}
