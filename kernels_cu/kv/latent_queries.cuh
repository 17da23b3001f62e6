// Rows of Q as operands: 512 channels quantized to 8 bits per row, 64 in the cache's type.
#pragma once
#include "kv/latent_storage.cuh"

// By all threads, who have met behind whatever reads the last head's.
template <LatentDecodeSpec S>
__device__ __forceinline__ void prepare_latent_queries(const DecodeParams& p,
                                                       LatentStorage<S>& storage,
                                                       const BlockCursor& at) {
  using Scale = Scaling<Type::int8, 8>;
  constexpr int kAtATime = S.warpgroups ? 4 : 1;  // rows of a warp that are loaded together
  // Warpgroups make exponents of scores at once.
  const float of_scale = S.warpgroups ? p.softmax_scale * kLog2E : 1.0f;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
  for (int first = warp; first < S.rows; first += kAtATime * kLatentWarps) {
    LatentRow rows[kAtATime];
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) {
      const RowPlace place = RowPlace::of<kLatentShare<S>>(p, at.head, first + k * kLatentWarps);
      if (!place.exists) continue;
      const i64 element = at.sequence * p.q_stride_batch + place.head * p.q_stride_head +
                          place.query * p.q_stride_row;
      const char* from = static_cast<const char*>(p.q) + element * bytes_of(S.input);
      rows[k].template load<S.input>(from, from + kLatent * bytes_of(S.input), p.q_aligned);
    }
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) {
      const int row = first + k * kLatentWarps;
      const LatentRow& x = rows[k];
      const float amax = x.amax();
      const float factor = Scale::factor(amax);
      if (lane == 0) {
        storage.scale[row] = Scale::scale(amax) * of_scale;
        if constexpr (S.warpgroups) storage.weight[row] = 0.0f;  // of what no block has left
      }
#pragma unroll
      for (int i = 0; i < LatentRow::kPieces; ++i) {
        storage.q.word(row, LatentRow::channel(i)) = x.codes(i, factor);
      }
      if (LatentRow::has_rope()) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          storage.q_rope.word(row, 8 * lane + 4 * i) = x.template pair<S.rope>(i);
        }
      }
    }
  }
  if constexpr (S.warpgroups) ptx::async_fence();
  meet_all();
}
