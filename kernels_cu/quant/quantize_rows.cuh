// Codes of Q and K.
#pragma once
#include "quant/lse_shift.cuh"
#include "quant/row_scales.cuh"
#include "quant/row_values.cuh"

template <QuantizeSpec S, Role R>
__device__ __forceinline__ void quantize_rows(const QuantizeParams& p, const QuantizeOperand& x,
                                              int cta, QuantizeStorage<S>& storage) {
  using T = Rows<S, R>;
  using Values = typename Choice<S.rotate, RotatedValues<T>, RowValues<T>>::type;
  T rows(x, cta, p.head_dim);
  if constexpr (R == Role::query && S.k_smooth) {
    if (p.lse_shift) store_lse_shift(rows, p);
  }
  Values values(rows, x, p.head_dim);
  const Factors<S, T> factors = scale_rows(rows, values, x, p.head_dim, storage);
  values.disguise(p.head_dim);
  rows.store([&](int r, auto& code) {
    values.visit(r, [&](int c, int i, float element) { code[c][i] = element * factors.of(r, c); });
  });
}
