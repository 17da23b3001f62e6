// Codes of sorted keys: those of K go to rows at their places, those of V to words of channels.
#pragma once
#include "quant/rows.cuh"
#include "quant/value_source.cuh"

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

// `Source` is a `ValueSource`, or what is like one; `Storage` has `sorted` and `codes`.
template <QuantizeSpec S, class Source, class Storage>
__device__ __forceinline__ void store_sorted_values(const Source& values, Storage& storage) {
  using V = Values<S>;
  const SortedTokens& sorted = storage.sorted;
  const typename V::Vector vector = values.vector();
#pragma unroll 1
  for (int pass = 0; pass < V::kPasses && V::takes_part(); ++pass) {
    const SortedOrder<S> order(sorted, ptx::opaque(V::first_word(pass)));
    typename V::Tile tile;
    values.template read<true>(tile, order);
    const auto meaning = values.meaning(order);
    float factor[V::kQuads][4];
#pragma unroll
    for (int quad = 0; quad < V::kQuads; ++quad) {
      load_floats(factor[quad], sorted.v_factor + order.place(quad));
    }
    if constexpr (S.v_staged) __syncthreads();  // codes take the place of rows
    put_codes<S>(storage.codes, tile, order, WordMasks<S>(), vector,
                 [&](int r, int c, int, float x) {
                   return meaning.value(r, c, x) * factor[r / 4][r % 4];
                 });
  }
  __syncthreads();
  store_channels(values.x, values.block, storage.codes);
}
