// One scale for a block of keys.
#pragma once
#include "quant/quantize_params.cuh"
#include "quant/scale.cuh"
#include "quant/storage.cuh"

// From what each lane has of its rows to the largest magnitude of their block, and from that to the
// block's scale. `T` is the `Rows` of K, whose warps each have rows of one block.
template <QuantizeSpec S, class T>
__device__ __forceinline__ float block_amax(const float (&amax)[T::kRows], const T& rows,
                                            const QuantizeOperand& x,
                                            QuantizeStorage<S>& storage) {
  constexpr int kBlockWarps = S.k_block / T::kWarpTokens;
  float largest = 0.0f;
#pragma unroll
  for (int r = 0; r < T::kRows; ++r) {
    // Rows past the end are zeros, but not after smoothing.
    if (rows.exists(r)) largest = ptx::max_nan(largest, amax[r]);
  }
  largest = ptx::max_across<kWarpSize>(largest);
  const int warp = threadIdx.x / kWarpSize;
  if (threadIdx.x % kWarpSize == 0) storage.amax[warp] = largest;
  __syncthreads();
  const int first_warp = warp / kBlockWarps * kBlockWarps;
  largest = storage.amax[first_warp];
#pragma unroll
  for (int i = 1; i < kBlockWarps; ++i) {
    largest = ptx::max_nan(largest, storage.amax[first_warp + i]);
  }
  const int block_in_tile = warp / kBlockWarps;
  const bool exists = block_in_tile * S.k_block < rows.from.count;
  if (threadIdx.x % (kBlockWarps * kWarpSize) == 0 && exists) {
    const i64 blocks = ceil_div(x.seqlen, S.k_block);
    x.scale[rows.from.head * blocks + rows.from.first / S.k_block + block_in_tile] =
        scale_of<S.k>(largest);
  }
  return largest;
}
