// Codes of Q and K, and the correction of the log-sum-exp for what smoothing takes from K.
#pragma once
#include "quant/per_row.cuh"
#include "quant/quantize_params.cuh"
#include "quant/row_scales.cuh"
#include "quant/row_source.cuh"

// Every logit of a query row lacks softmax_scale * (q . vector). `T` is the `Rows` of Q, and
// `shared` has room for a vector.
template <class T>
__device__ __forceinline__ void store_lse_shift(const T& rows, const QuantizeParams& p,
                                                f32* shared) {
  using Lanes = typename T::Lanes;
  const int batch = rows.from.head / p.q.num_heads;
  const int kv_head = rows.from.head % p.q.num_heads / p.heads_per_kv;
  const int head = batch * (p.q.num_heads / p.heads_per_kv) + kv_head;
  float part[T::kRows] = {};
  if constexpr (T::kFewLanes) {
    const f32* vector = p.k_vector + static_cast<i64>(head) * p.head_dim;
    __syncthreads();
    for (int i = threadIdx.x; i < Lanes::kRowChunks * Lanes::kElements; i += blockDim.x) {
      shared[i] = i < p.head_dim ? vector[i] : 0.0f;
    }
    __syncthreads();
    visit_beside(rows, shared, [&](int r, int, int, float x, float y) {
      part[r] = fmaf(x, y, part[r]);
    });
  } else {
    typename T::Vector vector;
    vector.load(p.k_vector, head, p.head_dim);
#pragma unroll
    for (int r = 0; r < T::kRows; ++r) {
      rows.tile.visit(
          r, [&](int c, int i, float x) { part[r] = fmaf(x, vector.at[c][i], part[r]); });
    }
  }
  const PerRow<Lanes::kLanes, T::kRows> dot(part, [](float x, float y) { return x + y; });
  dot.for_each([&](int r, float x) {
    if (rows.exists(r)) p.lse_shift[rows.first_row + rows.row(r)] = p.softmax_scale * x;
  });
}

// The CTA's tiles of Q or K, from `cta` on. Returns the first that is past their end.
template <QuantizeSpec S, Role R>
__device__ __forceinline__ int quantize_rows(const QuantizeParams& p, const QuantizeOperand& x,
                                              int cta, QuantizeStorage<S>& storage) {
  using T = Rows<S, R>;
  using Values = ValuesOf<S, T>;
  if (cta >= x.heads * x.tiles) return cta;
  f32* vector = storage.row_vectors.mine();
  RowSource<S, R> source = {x, p.head_dim, either<R == Role::query>(storage.q, storage.k),
                            vector};
  const Tiles<T::kTokens, S.staged> tiles(x);
  source.fetch(tiles[cta], true);
  do {
    T rows = source.take();
    cta += gridDim.x;
    if constexpr (R == Role::query && S.k_smooth) {
      if (p.lse_shift) store_lse_shift(rows, p, storage.vector);
    }
    Values values(rows, x, p.head_dim, vector);
    if constexpr (S.staged) source.fetch(tiles[cta], cta < tiles.count);
    values.rotate(p.head_dim);
    const Factors<S, T> factors = scale_rows(rows, values, x, p.head_dim, storage);
    values.disguise(p.head_dim);
    rows.store([&](int r, auto& code) {
      values.visit(r, [&](int c, int i, float element) {
        code[c][i] = element * (factors.of(r, c) * values.unit);
      });
    });
    if constexpr (!S.staged) break;  // the CTA has no other
    // What warps have told each other is not to be overwritten before all have read it.
    if constexpr (T::kScope != Scope::token && T::kScope != Scope::group) __syncthreads();
  } while (cta < tiles.count);
  if constexpr (T::kStaged) __syncthreads();  // others will use the shared memory
  return cta;
}
