// Normalizes O and stores it with the log-sum-exp of its rows.
#pragma once
#include "attn/shape.cuh"
#include "attn/softmax.cuh"
#include "attn/work.cuh"
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

// One tile of 16 rows.
template <AttentionSpec S>
__device__ __forceinline__ void store_output(const AttentionParams& p,
                                             const typename Shape<S>::Output& o,
                                             const OnlineSoftmax<S>& softmax,
                                             const Work<S>& work, int first_row, int lane) {
  using H = Shape<S>;
  const f32* channel_scale =
      H::kIntegerValues && !H::kTokenV ? p.v_scale + work.batch_kv_head * S.head_dim : nullptr;
  const f32* channel_mean = p.v_mean ? p.v_mean + work.batch_kv_head * p.head_dim : nullptr;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + 8 * half + lane / 4;
    if (row >= p.seqlen_q) continue;
    const float l = softmax.row_sum[half];
    // A row that sees no key: O = 0 and lse = -inf.
    const bool empty = l == 0.0f;
    const float inverse = empty ? 0.0f : 1.0f / l;
    const i64 o_row =
        work.batch * p.o_stride_batch + work.head * p.o_stride_head + row * p.o_stride_row;
#pragma unroll
    for (int dim_tile = 0; dim_tile < H::kDimTiles; ++dim_tile) {
      const int channel = 8 * dim_tile + 2 * (lane % 4);
      if (channel >= p.head_dim) continue;
      float x = o[dim_tile][2 * half] * inverse;
      float y = o[dim_tile][2 * half + 1] * inverse;
      if (channel_scale && !empty) {
        x *= __ldg(channel_scale + channel);
        y *= __ldg(channel_scale + channel + 1);
      }
      if (channel_mean && !empty) {
        x += __ldg(channel_mean + channel);
        y += __ldg(channel_mean + channel + 1);
      }
      store_pair<S.out>(p.o, o_row + channel, x, y);
    }
    if (p.lse && lane % 4 == 0) {
      const i64 index = work.batch_head * p.seqlen_q + row;
      float lse = (softmax.reference[half] + log2f(l) - kStepsLog2<S>) * kLn2;
      if (p.lse_shift) lse += p.lse_shift[index];
      p.lse[index] = empty ? -kInf : lse;
    }
  }
}
