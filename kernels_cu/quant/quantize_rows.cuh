// Codes of Q and K, and the correction of the log-sum-exp for what smoothing takes from K.
#pragma once
#include "quant/per_row.cuh"
#include "quant/quantize_params.cuh"
#include "quant/row_scales.cuh"
#include "quant/row_values.cuh"

// Every logit of a query row lacks softmax_scale * (q . vector). `T` is the `Rows` of Q, and
// `shared` what `share_vector` wants.
template <class T>
__device__ __forceinline__ void store_lse_shift(const T& rows, const QuantizeParams& p,
                                                f32* shared) {
  using Lanes = typename T::Lanes;
  const int batch = rows.from.head / p.q.num_heads;
  const int kv_head = rows.from.head % p.q.num_heads / p.heads_per_kv;
  const int head = batch * (p.q.num_heads / p.heads_per_kv) + kv_head;
  float part[T::kRows] = {};
  if constexpr (T::kFewLanes) {
    share_vector<Lanes>(shared, p.k_vector, head, p.head_dim);
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
      float at[Lanes::kElements];
      load_floats(at, shared + Lanes::channel(c));
#pragma unroll
      for (int r = 0; r < T::kRows; ++r) {
        rows.tile.template visit<1>(
            r, c, [&](int, int i, float x) { part[r] = fmaf(x, at[i], part[r]); });
      }
    }
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

template <QuantizeSpec S, Role R>
__device__ __forceinline__ void quantize_rows(const QuantizeParams& p, const QuantizeOperand& x,
                                              int cta, QuantizeStorage<S>& storage) {
  using T = Rows<S, R>;
  using Values = typename Choice<S.rotate, RotatedValues<T>, RowValues<T>>::type;
  T rows(x, cta, p.head_dim);
  if constexpr (R == Role::query && S.k_smooth) {
    if (p.lse_shift) store_lse_shift(rows, p, storage.vector);
  }
  Values values(rows, x, p.head_dim, storage.vector);
  const Factors<S, T> factors = scale_rows(rows, values, x, p.head_dim, storage);
  values.disguise(p.head_dim);
  rows.store([&](int r, auto& code) {
    values.visit(r, [&](int c, int i, float element) {
      code[c][i] = element * (factors.of(r, c) * values.unit);
    });
  });
}
