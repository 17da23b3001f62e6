// Codes of V with their scales.
#pragma once
#include "quant/channel_scale.cuh"
#include "quant/per_row.cuh"
#include "quant/values.cuh"

// Stores the scales of the lane's tokens; what makes codes of them.
template <QuantizeSpec S>
__device__ __forceinline__ void scale_tokens(float (&factor)[Values<S>::kRows],
                                             const QuantizeOperand& x, const TileSource& from,
                                             const typename Values<S>::Tile& tile,
                                             const typename Values<S>::Order& order,
                                             const typename Values<S>::Vector& vector) {
  using V = Values<S>;
  const i64 blocks = blocks_of<S>(x);
  const i64 blocks_with_tokens = ceil_div(x.seqlen, kTokenPad);
  float amax[V::kRows];
#pragma unroll
  for (int r = 0; r < V::kRows; ++r) amax[r] = tile.template amax<S.v_smooth>(r, vector);
  const PerRow<V::Lanes::kLanes, V::kRows> largest(amax, ptx::max_nan);
  largest.for_each([&](int r, float a) {
    const int token = from.first + order.first + order.offset(r);
    if (token >= blocks_with_tokens * kTokenPad) return;
    const i64 block = from.head * blocks + token / kTokenPad;
    f32* to = x.scale + block * 3 * kTokenPad + slot_of(token % kTokenPad);
    const float scale = V::Scale::scale(a);
    to[0] = scale;
    to[kTokenPad] = log2f(scale) + kLog2Bias;
    // NaN reaches the rows that see the token through the logarithm; the inverse must not carry
    // it to those that do not, whose probability of 0 it multiplies.
    to[2 * kTokenPad] = scale == scale ? __fdiv_rn(1.0f, scale) : 0.0f;
  });
  largest.share(factor, V::Scale::factor);
}

// Of what the lane has of a pass, less the vector.
template <QuantizeSpec S>
__device__ __forceinline__ float lane_amax(const TileSource& from,
                                           const typename Values<S>::Tile& tile,
                                           const typename Values<S>::Order& order,
                                           const typename Values<S>::Vector& vector) {
  float largest = 0.0f;
#pragma unroll
  for (int r = 0; r < Values<S>::kRows; ++r) {
    const float amax = tile.template amax<S.v_smooth>(r, vector);
    if (order.offset(r) < from.count - order.first) largest = ptx::max_nan(largest, amax);
  }
  return largest;
}

// From what a lane has of its block, in all passes, to what makes codes of that. Stores the scale.
template <QuantizeSpec S>
__device__ __forceinline__ float scale_block(const QuantizeOperand& x, const TileSource& from,
                                             float lane_amax, QuantizeStorage<S>& storage) {
  using V = Values<S>;
  const float amax = warps_amax<V::kBlockWarps>(lane_amax, storage);
  const int blocks = blocks_of<S>(x);
  constexpr int kBlockThreads = V::kBlockWarps * kWarpSize;
  const int block = from.first / kTokenPad + threadIdx.x / kBlockThreads;
  if (threadIdx.x % kBlockThreads == 0 && block < ceil_div(x.seqlen, kTokenPad)) {
    x.scale[static_cast<i64>(from.head) * blocks + block] = V::Scale::scale(amax);
  }
  return V::Scale::factor(amax);
}

template <QuantizeSpec S>
__device__ __forceinline__ void quantize_values(const QuantizeParams& p, int cta,
                                                QuantizeStorage<S>& storage) {
  using V = Values<S>;
  using Lanes = typename V::Lanes;
  const QuantizeOperand& x = p.v;
  const TileSource from = tile_source<S.input>(x, Tiles<S.v_tile, false>(x)[cta]);
  typename V::Vector vector;
  if constexpr ((V::kTokenScale || V::kBlockScale) && S.v_smooth) {
    vector.load(x.vector, from.head, p.head_dim_v);
  }

  float block_factor;
  if constexpr (V::kBlockScale && V::kPasses > 1) {
    // A block is more than registers hold: it is read twice.
    float largest = 0.0f;
#pragma unroll 1
    for (int pass = 0; pass < V::kPasses; ++pass) {
      const typename V::Order order{V::first_word(pass)};
      typename V::Tile tile;
      tile.template load<S.aligned, false>(from, order, p.head_dim_v);
      largest = ptx::max_nan(largest, lane_amax<S>(from, tile, order, vector));
    }
    block_factor = scale_block(x, from, largest, storage);
  }
#pragma unroll 1
  for (int pass = 0; pass < V::kPasses; ++pass) {
    const typename V::Order order{V::first_word(pass)};
    typename V::Tile tile;
    tile.template load<S.aligned>(from, order, p.head_dim_v);
    if constexpr (V::kTokenScale) {
      float factor[V::kRows];
      scale_tokens<S>(factor, x, from, tile, order, vector);
      if constexpr (S.v_smooth) tile.disguise(p.head_dim_v);
      put_codes<S>(storage.codes, tile, order, WordMasks<S>(order, from.count), vector,
                   [&](int r, int, int, float x) { return x * factor[r]; });
    } else if constexpr (V::kBlockScale) {
      if constexpr (V::kPasses == 1) {
        const float largest = lane_amax<S>(from, tile, order, vector);
        block_factor = scale_block(x, from, largest, storage);
        if constexpr (S.v_smooth) tile.disguise(p.head_dim_v);
      }
      put_codes<S>(storage.codes, tile, order, WordMasks<S>(order, from.count), vector,
                   [&](int, int, int, float x) { return x * block_factor; });
    } else {
      if (pass == 0) prepare_channels(p, from, storage);  // while the first loads are under way
      typename V::Vector channel_factor;
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        load_floats(vector.at[c], storage.vector + Lanes::channel(c));
        load_floats(channel_factor.at[c], storage.factor + Lanes::channel(c));
      }
      put_codes<S>(storage.codes, tile, order, WordMasks<S>(order, from.count), vector,
                   [&](int, int c, int i, float x) { return x * channel_factor.at[c][i]; });
    }
  }
  __syncthreads();
  store_channels(x, from, storage.codes);
}
