// Normalizes O and stores it with the log-sum-exp of its rows.
#pragma once
#include "attn/p_range.cuh"
#include "params.cuh"
#include "ptx/convert.cuh"

template <Type Out>
__device__ __forceinline__ void store_pair(void* o, i64 element, float x, float y) {
  if constexpr (Out == Type::fp32) {
    *reinterpret_cast<float2*>(static_cast<float*>(o) + element) = make_float2(x, y);
  } else {
    *reinterpret_cast<u32*>(static_cast<u16*>(o) + element) =
        Out == Type::fp16 ? ptx::pack_f16x2(x, y) : ptx::pack_bf16x2(x, y);
  }
}

// Where two rows of O belong.
struct OutputRows {
  int batch;
  int head;
  int kv_head;
  int first;  // the other is 8 further
};

// The two rows that a lane sees of a tile of 16: o(i, e) is element e of MMA column i. S is the
// spec of a kernel of either family.
template <auto S, bool ChannelScale, class O>
__device__ __forceinline__ void store_rows(const AttentionParams& p, O o,
                                           const float (&reference)[2], const float (&row_sum)[2],
                                           const OutputRows& rows, int lane) {
  const int num_kv_heads = p.num_q_heads / p.heads_per_kv;
  const i64 batch_kv_head = static_cast<i64>(rows.batch) * num_kv_heads + rows.kv_head;
  const f32* scales = ChannelScale ? p.v_scale + batch_kv_head * S.head_dim : nullptr;
  const f32* means = p.v_mean ? p.v_mean + batch_kv_head * p.head_dim : nullptr;
  float inverse[2];
  bool empty[2];
  bool exists[2];
  i64 at[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = rows.first + 8 * half;
    const float l = row_sum[half];
    exists[half] = row < p.seqlen_q;
    // A row that sees no key: O = 0 and lse = -inf. If all that it sees is infinitely far below
    // anything, both are NaN.
    empty[half] = (S.is_causal ? row + 1 + p.seqlen_kv - p.seqlen_q : p.seqlen_kv) <= 0;
    inverse[half] = 1.0f / l;
    at[half] = rows.batch * p.o_stride_batch + rows.head * p.o_stride_head + row * p.o_stride_row;
    if (p.lse && lane % 4 == 0 && exists[half]) {
      const i64 batch_head = static_cast<i64>(rows.batch) * p.num_q_heads + rows.head;
      const i64 index = batch_head * p.seqlen_q + row;
      float lse = l == 0.0f ? kNaN : (reference[half] + log2f(l) - kStepsLog2<S>) * kLn2;
      if (p.lse_shift) lse += p.lse_shift[index];
      p.lse[index] = empty[half] ? -kInf : lse;
    }
  }
  // Some columns at a time, whose loads are under way together.
  constexpr int kTiles = S.head_dim / 8;
  constexpr int kAtATime = kTiles % 8 == 0 ? 8 : 4;
#pragma unroll
  for (int first = 0; first < kTiles; first += kAtATime) {
    float2 scale[kAtATime];
    float2 mean[kAtATime];
#pragma unroll
    for (int i = 0; i < kAtATime; ++i) {
      const int channel = 8 * (first + i) + 2 * (lane % 4);
      scale[i] = make_float2(1.0f, 1.0f);
      mean[i] = make_float2(0.0f, 0.0f);
      if constexpr (ChannelScale) {
        scale[i] = __ldg(reinterpret_cast<const float2*>(scales + channel));
      }
      if (means && channel < p.head_dim) {
        mean[i] = __ldg(reinterpret_cast<const float2*>(means + channel));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtATime; ++i) {
      const int channel = 8 * (first + i) + 2 * (lane % 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float x = o(first + i, 2 * half) * inverse[half] * scale[i].x + mean[i].x;
        const float y = o(first + i, 2 * half + 1) * inverse[half] * scale[i].y + mean[i].y;
        if (exists[half] && channel < p.head_dim) {
          store_pair<S.out>(p.o, at[half] + channel, empty[half] ? 0.0f : x,
                            empty[half] ? 0.0f : y);
        }
      }
    }
  }
}
