// One scale for a channel of V, or for all channels of a head.
#pragma once
#include "quant/quantize_params.cuh"
#include "quant/row_tile.cuh"
#include "quant/scale.cuh"
#include "quant/storage.cuh"

// Puts what makes codes of a head's channels into shared memory. The head's first tile also writes
// the scales.
template <QuantizeSpec S>
__device__ __forceinline__ void prepare_channels(const QuantizeParams& p, const TileSource& from,
                                                 QuantizeStorage<S>& storage) {
  static_assert(S.num_threads >= S.head_dim, "one thread serves a channel");
  const int channel = threadIdx.x;
  float amax = 0.0f;
  float vector = 0.0f;
  if (channel < p.head_dim) {
    const i64 index = static_cast<i64>(from.head) * p.head_dim + channel;
    if constexpr (S.v_smooth) vector = p.v.vector[index];
    // This is max |x - vector| over the tokens, because rounding does not change an order.
    amax = ptx::max_nan(p.v_high[index] - vector, vector - p.v_low[index]);
  }
  if constexpr (S.v_per_tensor) {
    amax = ptx::max_across<kWarpSize>(amax);
    if (channel % kWarpSize == 0) storage.amax[channel / kWarpSize] = amax;
    __syncthreads();
    for (const float largest : storage.amax) amax = ptx::max_nan(amax, largest);
  }
  if (channel < S.head_dim) {
    storage.vector[channel] = vector;
    storage.factor[channel] = code_factor(amax);
    if (from.first == 0) {
      p.v.scale[static_cast<i64>(from.head) * S.head_dim + channel] = scale_of(amax);
    }
  }
  __syncthreads();
}
