// One scale for a channel of V, or for all channels of a head of any operand.
#pragma once
#include "quant/quantize_params.cuh"
#include "quant/row_tile.cuh"
#include "quant/scale.cuh"
#include "quant/storage.cuh"

// Of the thread's channel, less the vector; 0 where there is no such channel.
__device__ __forceinline__ float channel_amax(const QuantizeOperand& x, i64 head, int head_dim,
                                              float vector) {
  const int channel = threadIdx.x;
  if (channel >= head_dim) return 0.0f;
  // This is max |x - vector| over the tokens, because rounding does not change an order.
  const i64 index = head * head_dim + channel;
  return ptx::max_nan(x.high[index] - vector, vector - x.low[index]);
}

// From what each thread has of a head to the largest.
template <QuantizeSpec S>
__device__ __forceinline__ float head_amax(float amax, QuantizeStorage<S>& storage) {
  amax = ptx::max_across<kWarpSize>(amax);
  if (threadIdx.x % kWarpSize == 0) storage.amax[threadIdx.x / kWarpSize] = amax;
  __syncthreads();
  for (const float largest : storage.amax) amax = ptx::max_nan(amax, largest);
  return amax;
}

// Puts what makes codes of a head's channels into shared memory. The head's first tile also writes
// the scales.
template <QuantizeSpec S>
__device__ __forceinline__ void prepare_channels(const QuantizeParams& p, const TileSource& from,
                                                 QuantizeStorage<S>& storage) {
  static_assert(S.num_threads >= S.head_dim, "one thread serves a channel");
  const int channel = threadIdx.x;
  float vector = 0.0f;
  if constexpr (S.v_smooth) {
    if (channel < p.head_dim) {
      vector = p.v.vector[static_cast<i64>(from.head) * p.head_dim + channel];
    }
  }
  float amax = channel_amax(p.v, from.head, p.head_dim, vector);
  if constexpr (S.v_per_tensor) amax = head_amax<S>(amax, storage);
  if (channel < S.head_dim) {
    storage.vector[channel] = vector;
    storage.factor[channel] = code_factor<S.v>(amax);
    if (from.first == 0) {
      p.v.scale[static_cast<i64>(from.head) * S.head_dim + channel] = scale_of<S.v>(amax);
    }
  }
  __syncthreads();
}
