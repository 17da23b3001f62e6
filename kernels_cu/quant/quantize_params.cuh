// Run-time arguments of the quantizing kernels; cuattn/params.py reads these declarations.
#pragma once
#include "layout.cuh"
#include "numeric.cuh"

// One of Q, K, V. The input's last axis is contiguous; strides count elements.
struct QuantizeOperand {
  const void* x;       // [batch, num_heads, seqlen, head_dim]
  void* out;           // codes or values [heads, seqlen, S.head_dim]; codes of V
                       // [heads, blocks, S.head_dim, kTokenPad], blocks of kTokenPad tokens
  f32* scale;          // token: Q [heads, seqlen], K [heads, blocks, kTokenPad], V [heads, blocks,
                       // 3, kTokenPad] with the log2 and the inverse of each scale, those of K and
                       // V in the order of slots; block of keys: [heads, seqlen / S.k_block rounded
                       // up]; channel: [heads, S.head_dim]; head: repeated for each token of Q,
                       // block of K, channel of V
  const f32* vector;   // [heads, head_dim], K, V: subtracted from every token if smoothed;
                       // Q: that of K, read if there is an lse_shift
  const f32* low;      // [heads, head_dim], smallest and largest element of each channel; read if
  const f32* high;     // scales are per channel or per head
  i64 stride_batch;
  i64 stride_head;
  i64 stride_token;
  i32 heads;           // batch * num_heads; 0 leaves the operand out
  i32 num_heads;
  i32 seqlen;
  i32 tiles;           // CTAs of one head
};

struct QuantizeParams {
  QuantizeOperand q;
  QuantizeOperand k;
  QuantizeOperand v;
  f32* lse_shift;      // [q.heads, q.seqlen], softmax_scale * (q . vector) if K is smoothed;
                       // may be null
  i32 head_dim;        // of the inputs, a multiple of 8
  i32 heads_per_kv;    // query heads that share one head of K
  f32 softmax_scale;
};

struct StatsOperand {
  const void* x;       // as above
  f32* mean;           // [heads, head_dim]; a component that would not be finite is 0
  f32* low;            // [heads, head_dim], of Q and K if S.qk_range, of V if S.v_range
  f32* high;
  f32* partial;        // [heads, chunks, kinds, S.head_dim] if chunks > 1; kinds is 3 with a range
                       // (sum, low, high), else 1 (sum)
  i64 stride_batch;
  i64 stride_head;
  i64 stride_token;
  i32 heads;           // batch * num_heads; 0 leaves the operand out
  i32 num_heads;
  i32 seqlen;
  i32 chunk;           // tokens of one CTA
  i32 chunks;          // CTAs of one head; if it is 1, `stats` writes the result itself
};

struct StatsParams {
  StatsOperand q;      // left out unless S.qk_range
  StatsOperand k;
  StatsOperand v;
  i32 head_dim;
};
