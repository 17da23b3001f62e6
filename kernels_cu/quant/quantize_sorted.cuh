// Codes of K and V whose keys are sorted inside their blocks: a CTA has a block of both.
#pragma once
#include "quant/per_row.cuh"
#include "quant/row_values.cuh"
#include "quant/sorted_scales.cuh"
#include "quant/storage.cuh"
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
  if (!V::takes_part()) return;
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
__device__ __forceinline__ void store_sorted_keys(const QuantizeOperand& x,
                                                  const Rows<S, Role::key>& rows, auto& values,
                                                  const SortedTokens& sorted, i64 block) {
  using T = Rows<S, Role::key>;
  char* out = static_cast<char*>(x.out) + block * kSortedBlock * row_bytes(S.k, S.head_dim);
#pragma unroll
  for (int r = 0; r < T::kRows; ++r) {
    const int place = sorted.place[rows.row(r)] % kSortedBlock;
    const float factor =
        rows.exists(r) ? sorted.k_factor[place / kLanePlaces] * values.unit : 0.0f;
    float code[T::Lanes::kChunks][T::Lanes::kElements];
    values.visit(r, [&](int c, int i, float element) { code[c][i] = element * factor; });
    rows.store_row(out + row_bytes(S.k, column_of(place) * S.head_dim), code);
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
  for (int pass = 0; pass < V::kPasses && V::takes_part(); ++pass) {
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

// A block of K and V, or of one, which takes an order. K is held in registers, V is read twice.
template <QuantizeSpec S>
__device__ __forceinline__ void quantize_sorted(const QuantizeParams& p, int block,
                                                QuantizeStorage<S>& storage) {
  using K = Rows<S, Role::key>;
  using KValues = typename Choice<S.rotate, RotatedValues<K>, RowValues<K>>::type;
  static_assert(S.k_tile == kSortedBlock && S.v_tile == kSortedBlock);
  SortedTokens& sorted = storage.sorted;
  const bool has_k = p.k.heads > 0;
  const bool has_v = p.v.heads > 0;
  const TileSource v_from = tile_source<S.input>(has_v ? p.v : p.k, block, kSortedBlock);
  u8* order = p.order ? p.order + static_cast<i64>(block) * kSortedBlock : nullptr;
  const auto look_at_v = [&] { if (has_v) find_v_amax<S>(p.v, sorted, v_from, p.head_dim_v); };
  if (!has_k) {
    look_at_v();
    take_order<S.num_threads>(sorted, order);
    __syncthreads();
    scale_places<S>(p, sorted, block, v_from.count);
    __syncthreads();
  } else {
    // Rotated keys leave no registers to be under way meanwhile.
    if constexpr (S.rotate) look_at_v();
    K rows(p.k, block, p.head_dim);
    if constexpr (!S.rotate) look_at_v();
    KValues values(rows, p.k, p.head_dim, storage.vector);
    float amax[K::kRows];
#pragma unroll
    for (int r = 0; r < K::kRows; ++r) {
      amax[r] = values.template amax<K::Lanes::kChunks>(r, 0);
    }
    const PerRow<K::Lanes::kLanes, K::kRows> largest(amax, ptx::max_nan);
    largest.for_each([&](int r, float x) {
      sorted.k_amax[rows.row(r)] = rows.exists(r) ? __float_as_uint(x) : kPastEnd;
    });
    values.disguise(p.head_dim);
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
    scale_places<S>(p, sorted, block, rows.from.count);
    __syncthreads();
    store_sorted_keys<S>(p.k, rows, values, sorted, block);
  }
  if (has_v) store_sorted_values<S>(p.v, v_from, p.head_dim_v, storage);
}
