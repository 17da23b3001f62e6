// O += P V for one block of keys.
#pragma once
#include "attn/scores.cuh"
#include "attn/shape.cuh"
#include "attn/softmax.cuh"
#include "ptx/ldmatrix.cuh"

// P V of one block is done in parts: 16 channels, or one step of k where O is the accumulator.
template <AttentionSpec S>
constexpr int kValueParts =
    Shape<S>::kScaledValues ? Shape<S>::kDimTiles / 2 : Shape<S>::kValueSteps;

// Whether what a block adds to O has a factor.
template <AttentionSpec S>
constexpr bool kWeighted = S.p_range == PRange::block || Shape<S>::kBlockV || kTerms<S> > 1;

// `v` is the lane's address in the tile. All row tiles of the warp share what is read from it.
// Products of codes are summed over the whole block, integers exactly, and enter O once, times the
// block's weight: float32 has the digits that the tensor cores' sums of FP8 products lack.
template <AttentionSpec S>
__device__ __forceinline__ void add_values(
    typename Shape<S>::Output (&o)[Shape<S>::kRowTiles],
    const typename Shape<S>::Probabilities (&p)[Shape<S>::kRowTiles], u32 v,
    const OnlineSoftmax<S> (&softmax)[Shape<S>::kRowTiles], const AttentionParams& params,
    int part) {
  using H = Shape<S>;
  // Keeps the compiler from reading so far ahead that registers spill.
  __syncwarp();
  if constexpr (H::kScaledValues) {
#pragma unroll
    for (int term = 0; term < kTerms<S>; ++term) {
      if (term > 0) __syncwarp();  // for the same reason
      float sum[H::kRowTiles][2][4];
#pragma unroll
      for (int step = 0; step < H::kValueSteps; ++step) {
        u32 b[4];
        ptx::ldmatrix_x4(b, H::VTile::advance(v, step * 32) + part * 16 * H::VTile::row_bytes);
#pragma unroll
        for (int tile = 0; tile < H::kRowTiles; ++tile) {
          const u32(&a)[4] = p[tile][term * H::kValueSteps + step];
          mma_step<S.pv, true>(sum[tile][0], a, b[0], b[1], step);
          mma_step<S.pv, true>(sum[tile][1], a, b[2], b[3], step);
        }
      }
      const float of_term = term_weight<S>(params, term);
#pragma unroll
      for (int tile = 0; tile < H::kRowTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& x = o[tile][2 * part + i / 4][i % 4];
          const float a = sum[tile][i / 4][i % 4] - kAccumulatorStart<S.pv>;
          const float weight = softmax[tile].weight[i % 4 / 2] * softmax[tile].value_scale;
          x = kWeighted<S> ? __fmaf_rn(a, weight * of_term, x) : x + a;
        }
      }
    }
  } else {
#pragma unroll
    for (int pair = 0; pair < H::kDimTiles / 2; ++pair) {
      u32 b[4];
      ptx::ldmatrix_x4_trans(b,
                             H::VTile::advance(v, pair * 32) + part * 16 * H::VTile::row_bytes);
#pragma unroll
      for (int tile = 0; tile < H::kRowTiles; ++tile) {
        float(&d0)[4] = o[tile][2 * pair];
        float(&d1)[4] = o[tile][2 * pair + 1];
        mma<S.pv>(d0, p[tile][part], b[0], b[1], d0);
        mma<S.pv>(d1, p[tile][part], b[2], b[3], d1);
      }
    }
  }
}
