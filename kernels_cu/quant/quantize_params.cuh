// Run-time arguments of the quantizing kernels; cuattn/compile/params.py reads these declarations.
#pragma once
#include "layout.cuh"
#include "numeric.cuh"

// One of Q, K, V. The input's last axis is contiguous; strides count elements.
struct QuantizeOperand {
  const void* x;       // [batch, num_heads, seqlen, head_dim]
  void* out;           // codes or values [heads, seqlen, S.head_dim], of sorted keys
                       // [heads, blocks, kTokenPad, S.head_dim]; values of V
                       // [heads, seqlen, S.head_dim_v], codes
                       // [heads, blocks, S.head_dim_v, kTokenPad], blocks of kTokenPad tokens
  f32* scale;          // Q: token [heads, seqlen], group [heads, seqlen, groups]. K as S.k_stored
                       // says: token [heads, blocks, kTokenPad] in the order of slots, group
                       // [heads, groups, blocks, kTokenPad] alike, thread [heads, blocks, 8], four
                       // of each 64 keys, sorted [heads, blocks, kPlaceScales], block [heads,
                       // blocks of keys].
                       // V: token [heads, blocks, 3, kTokenPad] alike, with the log2 and the
                       // inverse of each scale, sorted [heads, blocks, 3, kPlaceScales] alike,
                       // block [heads, blocks], channel [heads, S.head_dim_v].
                       // A scale of more than these is repeated. Groups are those of S.head_dim.
  const f32* vector;   // subtracted if smoothed: K, V [heads, head_dim];
                       // Q [heads, blocks of 128, head_dim]
  const f32* low;      // [heads, head_dim], smallest and largest element of each channel; read if
  const f32* high;     // scales are per channel or per head
  i64 stride_batch;
  i64 stride_head;
  i64 stride_token;
  i32 heads;           // batch * num_heads; 0 leaves the operand out
  i32 num_heads;
  i32 seqlen;
  i32 tiles;           // CTAs of one head
  // If S.varlen; see sequences.cuh.
  const i32* cu_seqlens;  // [batch + 1] if sequences lie end to end, else null
  const i32* seqused;  // [batch]; may be null
  i32 max_seqlen;      // seqlen of a sequence is no more
  i32 total;           // tokens of the input: of all sequences, or of a slot
  i32 pitch;           // tokens of a head in what is written, in whole blocks if these are shared
};

struct QuantizeParams {
  QuantizeOperand q;
  QuantizeOperand k;
  QuantizeOperand v;
  f32* lse_shift;      // [q.heads, q.seqlen], softmax_scale * (q . k_vector) if K is smoothed;
                       // may be null
  const f32* k_vector; // [heads of K, head_dim], read if there is an lse_shift
  u8* order;           // [heads, blocks, kTokenPad], of sorted K and V: written if both are there,
                       // else read; null stands for the order of columns
  u32* next_item;      // of attention, which counts from 0 on; may be null
  i32 head_dim;        // of Q and K, a multiple of 8
  i32 head_dim_v;      // of V, likewise
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
  i32 chunk;           // tokens of one CTA at most
  i32 chunks;          // CTAs of one head: a multiple of kMeanGroups, as many for each group; or 1,
                       // and `stats` writes the result itself
  i32 robust;          // whether groups of tokens that stand out are limited in the mean
  // If S.varlen; as above.
  const i32* cu_seqlens;
  const i32* seqused;
  i32 total;
  i32 most;            // tokens that are one chunk if a head has no more; 0 if any number is
};

struct StatsParams {
  StatsOperand q;      // left out unless S.qk_range
  StatsOperand k;
  StatsOperand v;
  i32 head_dim;
};
