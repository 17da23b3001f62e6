// What O and the sum of a row are relative to, and when it moves.
#pragma once
#include "attn/p_range.cuh"
#include "attn/shape.cuh"
#include "ptx/math.cuh"

// Rescales O and the sums of the two rows of a lane, if the maximum of the block at hand moves the
// reference of any row of the warp.
template <AttentionSpec S>
__device__ __forceinline__ void move_reference(float (&reference)[2], float (&row_sum)[2],
                                               const float (&row_max_log2)[2],
                                               typename Shape<S>::Output& o) {
  constexpr float kSlack = S.p_range == PRange::block ? kHeadroom<S> : 0.0f;
  const bool moves = row_max_log2[0] > reference[0] + kSlack ||
                     row_max_log2[1] > reference[1] + kSlack;
  if (!__any_sync(0xffffffffu, moves)) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float next = next_reference<S.p_range>(reference[half], row_max_log2[half]);
    const float shrink = ptx::ex2(reference[half] - next);
    reference[half] = next;
    row_sum[half] *= shrink;
#pragma unroll
    for (int dim_tile = 0; dim_tile < Shape<S>::kDimTiles; ++dim_tile) {
      o[dim_tile][2 * half] *= shrink;
      o[dim_tile][2 * half + 1] *= shrink;
    }
  }
}
