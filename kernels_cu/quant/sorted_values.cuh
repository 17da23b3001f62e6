// V of a block of sorted keys: the largest magnitudes of its tokens, and its codes by their places.
#pragma once
#include "quant/per_row.cuh"
#include "quant/quantize_params.cuh"
#include "quant/storage.cuh"
#include "quant/token_ranks.cuh"
#include "quant/values.cuh"

// What a lane reads of V to make words of channels: four tokens of neighbouring places.
template <QuantizeSpec S>
struct SortedOrder {
  static constexpr int first = 0;
  int first_word;
  u32 tokens[Values<S>::kQuads];

  __device__ __forceinline__ SortedOrder(const SortedTokens& sorted, int word)
      : first_word(word) {
#pragma unroll
    for (int quad = 0; quad < Values<S>::kQuads; ++quad) {
      tokens[quad] = reinterpret_cast<const u32*>(sorted.token)[place(quad) / 4];
    }
  }
  // Of the first of the four.
  __device__ __forceinline__ int place(int quad) const {
    return place_of(token_in_slot(4 * (first_word + quad)));
  }
  __device__ __forceinline__ int offset(int r) const { return tokens[r / 4] >> r % 4 * 8 & 255; }
};

// Largest magnitudes of V's tokens.
template <QuantizeSpec S>
__device__ __forceinline__ void find_v_amax(const QuantizeOperand& x, SortedTokens& sorted,
                                            const TileSource& from, int head_dim) {
  using V = Values<S>;
  typename V::Vector vector;
  if constexpr (S.v_smooth) vector.load(x.vector, from.head, head_dim);
#pragma unroll 1
  for (int pass = 0; pass < V::kPasses; ++pass) {
    const typename V::Order order{V::first_word(pass)};
    typename V::Tile tile;
    tile.template load<S.aligned, false>(from, order, head_dim);
    float amax[V::kRows];
#pragma unroll
    for (int r = 0; r < V::kRows; ++r) amax[r] = tile.template amax<S.v_smooth>(r, vector);
    const PerRow<V::Lanes::kLanes, V::kRows> largest(amax, ptx::max_nan);
    largest.for_each([&](int r, float x) {
      const int token = order.first + order.offset(r);
      sorted.v_amax[token] = token < from.count ? __float_as_uint(x) : kPastEnd;
    });
  }
}

template <QuantizeSpec S>
__device__ __forceinline__ void store_sorted_values(const QuantizeOperand& x,
                                                    const TileSource& from, int head_dim,
                                                    QuantizeStorage<S>& storage) {
  using V = Values<S>;
  const SortedTokens& sorted = storage.sorted;
  // Once more, for registers hold keys meanwhile.
  typename V::Vector vector;
  if constexpr (S.v_smooth) vector.load(x.vector, from.head, head_dim);
#pragma unroll 1
  for (int pass = 0; pass < V::kPasses; ++pass) {
    const SortedOrder<S> order(sorted, V::first_word(pass));
    typename V::Tile tile;
    tile.template load<S.aligned>(from, order, head_dim);
    float factor[V::kRows];
#pragma unroll
    for (int r = 0; r < V::kRows; ++r) {
      const int place = order.place(r / 4) + r % 4;
      factor[r] = sorted.v_factor[place / kLanePlaces * kSections + section_of(place)];
    }
    put_codes<S>(storage.codes, tile, order, from.count, vector,
                 [&](int r, int, int) { return factor[r]; });
  }
  __syncthreads();
  store_channels(x, from, storage.codes);
}
