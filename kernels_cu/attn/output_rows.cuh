// What rows of O have in the end beside their channels: sinks, and the log-sum-exp.
#pragma once
#include "attn/mask.cuh"
#include "ptx/math.cuh"

// Where two rows of O belong.
struct OutputRows {
  int batch;
  int head;
  int first;  // the other is 8 further
};

// Stores the log-sum-exp of a row, of whose keys it is given, -inf if there are none; returns their
// share in the sum, of which the rest is the sink's.
template <auto S>
__device__ __forceinline__ float finish_row(const AttentionParams& p, const OutputRows& rows,
                                            int row, float lse, bool stores) {
  const i64 batch_head = static_cast<i64>(rows.batch) * p.num_q_heads + rows.head;
  const i64 index = batch_head * row_pitch<S>(p) + row;
  if (p.lse_shift && !S.rules.unshifted()) lse += p.lse_shift[index];
  float share = 1.0f;
  if constexpr (S.rules.sinks) {
    const float sink = widened(p.sinks, rows.head * p.sinks_stride_head, p.sinks_type);
    const float m = fmaxf(sink, lse);
    if (m != -kInf) {
      const float keys = ptx::ex2((lse - m) * kLog2e);
      const float all = keys + ptx::ex2((sink - m) * kLog2e);
      share = keys / all;
      lse = m + ptx::lg2(all) * kLn2;
    }
  }
  if (p.lse && stores) p.lse[index] = lse;
  return share;
}
