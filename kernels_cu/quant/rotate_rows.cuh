// The rotation of rows in registers, each operation rounded as reference/rotation.py has it.
#pragma once
#include "rotation.cuh"

// Sums and differences of what lies `step` channels apart: half of the multiplication by a matrix.
__device__ __forceinline__ void butterfly(float& low, float& high) {
  const float sum = __fadd_rn(low, high);
  high = __fsub_rn(low, high);
  low = sum;
}

// Rotates rows of which the lane has x[row][chunk][element] at Lanes::channel(chunk) + element.
// `block` is rotation_block(head_dim), at least 8; what pads the rows is zero and stays so. All
// lanes of the warp take part.
template <class Lanes, int Rows>
__device__ __forceinline__ void rotate_rows(
    float (&x)[Rows][Lanes::kChunks][Lanes::kElements], int block) {
  constexpr int kElements = Lanes::kElements;
  constexpr int kChunks = Lanes::kChunks;
  const auto for_each = [&](auto change) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int i = 0; i < kElements; ++i) change(r, c, i);
      }
    }
  };
  u32 signs[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) signs[c] = rotation_signs(Lanes::channel(c));
  for_each([&](int r, int c, int i) {
    x[r][c][i] = __uint_as_float(__float_as_uint(x[r][c][i]) ^ signs[c] >> i << 31);
  });

#pragma unroll
  for (int step = 1; step < kElements; step *= 2) {
    for_each([&](int r, int c, int i) {
      if ((i & step) == 0) butterfly(x[r][c][i], x[r][c][i + step]);
    });
  }
#pragma unroll
  for (int bit = 1; bit < Lanes::kLanes; bit *= 2) {
    if (block > bit * kElements) {
      const float sign = Lanes::lane() & bit ? -1.0f : 1.0f;
      for_each([&](int r, int c, int i) {
        // A product with 1 or -1 is exact, so this rounds as the sum or difference does.
        const float other = __shfl_xor_sync(0xffffffffu, x[r][c][i], bit);
        x[r][c][i] = __fmaf_rn(x[r][c][i], sign, other);
      });
    }
  }
  // Otherwise no block is as long as the first chunks of all lanes together.
  if constexpr ((kChunks & (kChunks - 1)) == 0) {
#pragma unroll
    for (int step = 1; step < kChunks; step *= 2) {
      if (block > step * Lanes::kLanes * kElements) {
        for_each([&](int r, int c, int i) {
          if ((c & step) == 0) butterfly(x[r][c][i], x[r][c + step][i]);
        });
      }
    }
  }
  const float scale = rotation_scale(block);
  for_each([&](int r, int c, int i) { x[r][c][i] = __fmul_rn(x[r][c][i], scale); });
}
