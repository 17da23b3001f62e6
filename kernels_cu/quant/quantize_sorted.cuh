// Codes of K and V whose keys are sorted inside their blocks: a CTA has a block of both.
#pragma once
#include "quant/per_row.cuh"
#include "quant/row_source.cuh"
#include "quant/sorted_scales.cuh"

// What a lane reads of V to make words of channels: four tokens of neighbouring places each.
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
  // Of the first of the four, which has column 2 t of lane t in 16 columns; the others follow.
  __device__ __forceinline__ int place(int quad) const {
    const u32 word = first_word + quad;
    return word % 4 * kLanePlaces + word / 4 * 4;
  }
  __device__ __forceinline__ int offset(int r) const { return tokens[r / 4] >> r % 4 * 8 & 255; }
};

// Blocks of V as a CTA gets them, one after the other.
template <QuantizeSpec S>
struct ValueSource {
  using V = Values<S>;
  const QuantizeOperand& x;
  int head_dim;
  QuantizeStorage<S>& storage;
  TileSource block = {};

  // As that of `RowSource`; all of the CTA is done with the block before.
  __device__ __forceinline__ void fetch(const TilePlace& at, bool exists) {
    if (exists) {
      block = tile_source<S.input>(x, at);
      if constexpr (S.v_staged) {
        storage.v.fetch(block, head_dim);
        if constexpr (S.v_smooth) {
          fetch_vector<S.head_dim>(storage.value_vectors.mine(),
                                   x.vector + static_cast<i64>(block.head) * head_dim, head_dim);
        }
      }
    }
    if constexpr (S.v_staged) ptx::cp_async_commit();
  }

  // Waits for what the warp has fetched of the block; the rows of K are being fetched, too.
  __device__ __forceinline__ void arrive() const {
    if constexpr (S.v_staged) {
      ptx::cp_async_wait<Rows<S, Role::key>::kStaged ? 1 : 0>();
      __syncwarp();
    }
  }

  __device__ __forceinline__ typename V::Vector vector() const {
    typename V::Vector result;
    if constexpr (S.v_smooth) {
      if constexpr (S.v_staged) {
        result.read(storage.value_vectors.mine());
      } else {
        result.load(x.vector, block.head, head_dim);
      }
    }
    return result;
  }

  // Some rows. `Once`: nobody will read them again.
  template <bool Once, class Order>
  __device__ __forceinline__ void read(typename V::Tile& tile, const Order& order) const {
    if constexpr (S.v_staged) {
      tile.read(storage.v, order);
    } else {
      tile.template load<S.aligned, Once>(block, order, head_dim);
    }
  }
};

// Largest magnitudes of V's tokens.
template <QuantizeSpec S>
__device__ __forceinline__ void find_v_amax(const ValueSource<S>& values, SortedTokens& sorted) {
  using V = Values<S>;
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

template <QuantizeSpec S>
__device__ __forceinline__ void store_sorted_keys(const QuantizeOperand& x,
                                                  const Rows<S, Role::key>& rows, auto& values,
                                                  const SortedTokens& sorted, i64 block) {
  using T = Rows<S, Role::key>;
  char* out = static_cast<char*>(x.out) + block * kSortedBlock * row_bytes(S.k, S.head_dim);
#pragma unroll
  for (int r = 0; r < T::kRows; ++r) {
    const int place = sorted.place[rows.row(r)] % kSortedBlock;
    const float factor = sorted.k_factor[rows.row(r)] * values.unit;
    float code[T::Lanes::kChunks][T::Lanes::kElements];
    values.visit(r, [&](int c, int i, float element) { code[c][i] = element * factor; });
    rows.store_row(out + row_bytes(S.k, column_of(place) * S.head_dim), code);
  }
}

template <QuantizeSpec S>
__device__ __forceinline__ void store_sorted_values(const ValueSource<S>& values,
                                                    QuantizeStorage<S>& storage) {
  using V = Values<S>;
  const SortedTokens& sorted = storage.sorted;
  const typename V::Vector vector = values.vector();
#pragma unroll 1
  for (int pass = 0; pass < V::kPasses; ++pass) {
    const SortedOrder<S> order(sorted, ptx::opaque(V::first_word(pass)));
    typename V::Tile tile;
    values.template read<true>(tile, order);
    float factor[V::kQuads][4];
#pragma unroll
    for (int quad = 0; quad < V::kQuads; ++quad) {
      load_floats(factor[quad], sorted.v_factor + order.place(quad));
    }
    if constexpr (S.v_staged) __syncthreads();  // codes take the place of rows
    put_codes<S>(storage.codes, tile, order, WordMasks<S>(), vector,
                 [&](int r, int, int) { return factor[r / 4][r % 4]; });
  }
  __syncthreads();
  store_channels(values.x, values.block, storage.codes);
}

// The CTA's blocks of K and V, or of one, which takes an order: from `block` on. K is held in
// registers while V is read twice.
template <QuantizeSpec S>
__device__ __forceinline__ void quantize_sorted(const QuantizeParams& p, int block,
                                                QuantizeStorage<S>& storage) {
  using K = Rows<S, Role::key>;
  using KValues = typename Choice<S.rotate, RotatedValues<K>, RowValues<K>>::type;
  static_assert(S.k_tile == kSortedBlock && S.v_tile == kSortedBlock);
  SortedTokens& sorted = storage.sorted;
  const bool has_k = p.k.heads > 0;
  const bool has_v = p.v.heads > 0;
  f32* k_vector = storage.row_vectors.mine();
  RowSource<S, Role::key, S.v_staged> keys = {p.k, p.head_dim, storage.k, k_vector};
  ValueSource<S> values = {p.v, p.head_dim, storage};
  const Tiles<kSortedBlock> blocks(has_v ? p.v : p.k);
  TilePlace at = blocks[block];
  keys.fetch(at, has_k && block < blocks.count);
  values.fetch(at, has_v && block < blocks.count);
  for (; block < blocks.count; block += gridDim.x) {
    const int next = block + gridDim.x;
    at = blocks[next];
    u8* order = p.order ? p.order + static_cast<i64>(block) * kSortedBlock : nullptr;
    if (!has_k) {
      keys.fetch(at, false);  // nothing, but `values` counts what follows it
      find_v_amax(values, sorted);
      take_order<S.num_threads>(sorted, order);
      __syncthreads();
      scale_places<S>(p, sorted, block, values.block.count);
      __syncthreads();
    } else {
      // Rotated keys leave no registers for loads that take long.
      if (!S.v_staged && has_v) find_v_amax(values, sorted);
      K rows = keys.take();
      KValues k_values(rows, p.k, p.head_dim, k_vector);
      keys.fetch(at, next < blocks.count);
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
      scale_places<S>(p, sorted, block, rows.from.count);
      __syncthreads();
      store_sorted_keys<S>(p.k, rows, k_values, sorted, block);
    }
    if (has_v) store_sorted_values(values, storage);
    if constexpr (!S.staged) break;  // the CTA has no other
    __syncthreads();
    values.fetch(at, has_v && next < blocks.count);
  }
}
