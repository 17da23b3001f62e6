// One scale for a channel of V, or for all channels of a head of any operand.
#pragma once
#include "quant/codes.cuh"
#include "quant/own_channels.cuh"
#include "quant/quantize_params.cuh"
#include "quant/row_tile.cuh"
#include "quant/storage.cuh"

// What is subtracted from a channel.
template <bool Smooth>
__device__ __forceinline__ float channel_vector(const QuantizeOperand& x, i64 head, int head_dim,
                                                int channel) {
  return Smooth && channel < head_dim ? x.vector[head * head_dim + channel] : 0.0f;
}

// Of a channel, less the vector; 0 where there is no such channel.
__device__ __forceinline__ float channel_amax(const QuantizeOperand& x, i64 head, int head_dim,
                                              int channel, float vector) {
  if (channel >= head_dim) return 0.0f;
  // This is max |x - vector| over the tokens, because rounding does not change an order.
  const i64 index = head * head_dim + channel;
  return ptx::max_nan(x.high[index] - vector, vector - x.low[index]);
}

// Of all channels.
template <QuantizeSpec S, bool Smooth>
__device__ __forceinline__ float head_amax(const QuantizeOperand& x, i64 head, int head_dim,
                                           QuantizeStorage<S>& storage) {
  float amax = 0.0f;
  for_own_channels<max_of(S.head_dim, S.head_dim_v), S.num_threads>([&](int channel) {
    const float vector = channel_vector<Smooth>(x, head, head_dim, channel);
    amax = ptx::max_nan(amax, channel_amax(x, head, head_dim, channel, vector));
  });
  return warps_amax<S.num_threads / kWarpSize>(amax, storage);
}

// Puts what makes codes of a head's channels of V into shared memory. The head's first tile also
// writes the scales.
template <QuantizeSpec S>
__device__ __forceinline__ void prepare_channels(const QuantizeParams& p, const TileSource& from,
                                                 QuantizeStorage<S>& storage) {
  using Scale = Scaling<S.v, S.v_bits>;
  float amax;
  if constexpr (S.v_scope == Scope::tensor) {
    amax = head_amax<S, S.v_smooth>(p.v, from.head, p.head_dim_v, storage);
  }
  for_own_channels<S.head_dim_v, S.num_threads>([&](int channel) {
    const float vector = channel_vector<S.v_smooth>(p.v, from.head, p.head_dim_v, channel);
    if constexpr (S.v_scope != Scope::tensor) {
      amax = channel_amax(p.v, from.head, p.head_dim_v, channel, vector);
    }
    storage.vector[channel] = vector;
    storage.factor[channel] = Scale::factor(amax);
    if (from.first == 0) {
      p.v.scale[static_cast<i64>(from.head) * S.head_dim_v + channel] = Scale::scale(amax);
    }
  });
  __syncthreads();
}
