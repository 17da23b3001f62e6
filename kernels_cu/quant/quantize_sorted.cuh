// Codes of K and V whose keys are sorted inside their blocks: a CTA has a block of both.
#pragma once
#include "quant/per_row.cuh"
#include "quant/row_source.cuh"
#include "quant/sorted_codes.cuh"
#include "quant/sorted_scales.cuh"

// Largest magnitudes of V's tokens.
template <QuantizeSpec S>
__device__ __forceinline__ void find_v_amax(const ValueSource<S>& values, SortedTokens& sorted) {
  using V = Values<S>;
  if (!V::takes_part()) return;
  values.arrive();
  const typename V::Vector vector = values.vector();
#pragma unroll 1
  for (int pass = 0; pass < V::kPasses; ++pass) {
    const typename V::Order order{V::first_word(pass)};
    typename V::Tile tile;
    values.template read<false>(tile, order);
    float amax[V::kRows];
#pragma unroll
    for (int r = 0; r < V::kRows; ++r) amax[r] = tile.template amax<S.v_smooth>(r, vector);
    const PerRow<V::Lanes::kLanes, V::kRows> largest(amax, ptx::max_nan);
    largest.for_each([&](int r, float x) {
      const int token = order.first + order.offset(r);
      sorted.v_amax[token] = token < values.block.count ? __float_as_uint(x) : kPastEnd;
    });
  }
}

// The CTA's blocks of K and V, or of one, which takes an order: from `block` on. K is held in
// registers while V is read twice.
template <QuantizeSpec S>
__device__ __forceinline__ void quantize_sorted(const QuantizeParams& p, int block,
                                                QuantizeStorage<S>& storage) {
  using K = Rows<S, Role::key>;
  using KValues = ValuesOf<S, K>;
  static_assert(S.k_tile == kSortedBlock && S.v_tile == kSortedBlock);
  SortedTokens& sorted = storage.sorted;
  const bool has_k = p.k.heads > 0;
  const bool has_v = p.v.heads > 0;
  f32* k_vector = storage.row_vectors.mine();
  RowSource<S, Role::key, S.v_staged> keys = {p.k, p.head_dim, storage.k, k_vector};
  ValueSource<S> values = {p.v, p.head_dim_v, storage};
  const Tiles<kSortedBlock, S.staged> blocks(has_v ? p.v : p.k);
  if (block >= blocks.count) return;
  TilePlace at = blocks[block];
  keys.fetch(at, has_k);
  values.fetch(at, has_v);
  for (; block < blocks.count; block += gridDim.x) {
    const int next = block + gridDim.x;
    if constexpr (S.staged) at = blocks[next];
    u8* order = p.order ? p.order + static_cast<i64>(block) * kSortedBlock : nullptr;
    if (!has_k) {
      if constexpr (S.staged) keys.fetch(at, false);  // nothing: `values` counts what follows it
      find_v_amax(values, sorted);
      take_order<S.num_threads>(sorted, order);
      __syncthreads();
      scale_places<S>(p, sorted, values.block.count);
      __syncthreads();
    } else {
      // Rotated keys leave no registers for loads that take long.
      if (!S.v_staged && has_v) find_v_amax(values, sorted);
      K rows = keys.take();
      KValues k_values(rows, p.k, p.head_dim, k_vector);
      if constexpr (S.staged) keys.fetch(at, next < blocks.count);
      k_values.rotate(p.head_dim);
      float amax[K::kRows];
#pragma unroll
      for (int r = 0; r < K::kRows; ++r) {
        amax[r] = k_values.template amax<K::Lanes::kChunks>(r, 0);
      }
      const PerRow<K::Lanes::kLanes, K::kRows> largest(amax, ptx::max_nan);
      largest.for_each([&](int r, float x) {
        sorted.k_amax[rows.row(r)] = rows.exists(r) ? __float_as_uint(x) : kPastEnd;
      });
      k_values.disguise(p.head_dim);
      if (S.v_staged && has_v) find_v_amax(values, sorted);
      if (has_v) {
        __syncthreads();
        sort_tokens(sorted);
      } else {
        take_order<S.num_threads>(sorted, order);
      }
      __syncthreads();
      if (has_v && threadIdx.x < kSortedBlock / 16) {
        reinterpret_cast<uint4*>(order)[threadIdx.x] =
            reinterpret_cast<const uint4*>(sorted.token)[threadIdx.x];
      }
      scale_places<S>(p, sorted, rows.from.count);
      __syncthreads();
      store_sorted_keys<S>(p.k, rows, k_values, sorted, block);
    }
    store_place_scales<S>(p, sorted, block);
    if (has_v) store_sorted_values<S>(values, storage);
    if constexpr (!S.staged) break;  // the CTA has no other
    __syncthreads();
    values.fetch(at, has_v && next < blocks.count);
  }
}
