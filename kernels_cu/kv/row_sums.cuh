// The sums of rows over all lanes and warps, after the last block of a head.
#pragma once
#include "kv/block_softmax.cuh"

// By all computing threads, who have met behind it.
template <DecodeSpec S>
__device__ __forceinline__ void share_sums(DecodeStorage<S>& storage,
                                           const BlockSoftmax<S>& softmax, int warp, int lane) {
  const auto share = [&](float4* rows, float x, int row) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    x += __shfl_xor_sync(0xffffffffu, x, 2);
    if (lane % 4 == 0) reinterpret_cast<float*>(rows + row)[warp] = x;
  };
  DecodeShape<S>::for_rows([&](int tile, int half) {
    const int row = 16 * tile + 8 * half + lane / 4;
    share(storage.sums, softmax.row_sum[tile][half], row);
    if constexpr (Unit<S>::kHasVZero) {
      // The maxima have been read.
#pragma unroll
      for (int group = 0; group < Unit<S>::kVGroups; ++group) {
        share(storage.maxima[group], softmax.zero_sum[group][tile][half], row);
      }
    }
  });
  meet();
}

__device__ __forceinline__ float sum_of(const float4& x) { return (x.x + x.y) + (x.z + x.w); }

template <DecodeSpec S>
__device__ __forceinline__ float row_sum_of(const DecodeStorage<S>& storage, int row) {
  return sum_of(storage.sums[row]);
}

// Of P times zero points; 0 if there are none.
template <DecodeSpec S>
__device__ __forceinline__ float zero_sum_of(const DecodeStorage<S>& storage, int group, int row) {
  if constexpr (!Unit<S>::kHasVZero) return 0.0f;
  return sum_of(storage.maxima[group][row]);
}
