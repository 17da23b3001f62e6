// Run-time arguments of the attention kernels; cuattn/compile/params.py reads this declaration.
#pragma once
#include "user_value.cuh"

struct AttentionParams {
  const void* q;           // [batch, num_q_heads, seqlen_q, head_dim]
  const void* k;           // [batch, num_kv_heads, seqlen_kv, head_dim]
  const void* v;           // 8 bits: [batch, num_kv_heads, blocks, S.head_dim_v, 128]; else
                           // [batch, num_kv_heads, seqlen_kv, head_dim_v]
  void* o;                 // [batch, num_q_heads, seqlen_q, head_dim_v]
  f32* lse;                // [batch, num_q_heads, seqlen_q], natural log; may be null
  const f32* q_scale;      // token: [batch, num_q_heads, seqlen_q]; group: [.., groups]
  const f32* k_scale;      // token: [batch, num_kv_heads, blocks, 128], in the order of slots
                           // (layout.cuh); group: [batch, num_kv_heads, groups, blocks, 128] alike;
                           // thread: [batch, num_kv_heads, blocks, 8], of keys 64 i + 8 j + 2 t and
                           // their neighbours number 4 i + t; sorted:
                           // [batch, num_kv_heads, blocks, kPlaceScales]; block:
                           // [batch, num_kv_heads, key blocks]
  const f32* v_scale;      // token: [batch, num_kv_heads, blocks, 3, 128], in the order of slots:
                           // the scale, its log2 + kLog2Bias, its inverse; sorted:
                           // [batch, num_kv_heads, blocks, 3, kPlaceScales] alike, but no bias;
                           // block:
                           // [batch, num_kv_heads, blocks]; channel: [.., S.head_dim_v]
  const f32* v_mean;       // [batch, num_kv_heads, head_dim_v], added to O; may be null
  const f32* lse_shift;    // [batch, num_q_heads, seqlen_q], added to lse; may be null
  const f32* delta;        // [batch, num_q_heads, blocks of 128 rows, blocks, 128], in the order of
                           // slots: added to the exponents of a block's rows, and with it
                           // kLog2Bias unless V's logarithms hold it; if S.q_smooth
  const u8* order;         // [batch, num_kv_heads, blocks, 128], of sorted keys: which token of its
                           // block is in each place (layout.cuh); null if that is its column
  const void* sinks;       // [num_q_heads], natural logits; if S.rules.sinks
  const void* alibi_slopes;  // natural; if S.rules.alibi
  const void* attn_mask;   // words of bits or floats, by the strides below; if S.rules.mapped()
  const u32* mask_map;     // [.., tiles of 64 rows, 2, mask_words]: of each 64 keys a bit, whether
                           // the tile sees some of them, then whether all, and adds nothing
  i64 q_stride_batch;      // strides of q, k, v in bytes, of o in elements
  i64 q_stride_head;
  i64 q_stride_row;
  i64 k_stride_batch;
  i64 k_stride_head;
  i64 k_stride_row;
  i64 v_stride_batch;
  i64 v_stride_head;
  i64 v_stride_row;
  i64 o_stride_batch;
  i64 o_stride_head;
  i64 o_stride_row;
  i64 mask_stride_batch;   // in words of 32 keys, or in elements
  i64 mask_stride_head;
  i64 mask_stride_row;
  i64 mask_stride_key;     // of floats
  i64 map_stride_batch;    // in words
  i64 map_stride_head;
  i64 map_stride_tile;
  i64 alibi_stride_batch;  // in elements
  i64 alibi_stride_head;
  i64 sinks_stride_head;
  i32 num_q_heads;
  i32 heads_per_kv;        // query heads that share one head of K and V
  i32 seqlen_q;
  i32 seqlen_kv;
  i32 head_dim;            // of Q and K, without padding
  i32 head_dim_v;          // of V and O, likewise
  i32 row_blocks;          // CTAs along the query rows of one head
  i32 first_batch;         // of a launch that has not all of them; not read by the Hopper family
  i32 window_left;         // keys before and behind a row's own that it sees
  i32 window_right;
  i32 mask_words;          // of a row of the map
  i32 alibi_type;          // of the slopes, and of the sinks: 0 float32, 1 float16, 2 bfloat16
  i32 sinks_type;
  f32 softcap_log2;        // softcap * log2 e, and what a logit's exponent over it is times that
  f32 inverse_softcap;     // 1 / softcap_log2
  f32 scale_log2;          // softmax_scale * log2 e
  f32 twin;                // 2^p_split, if S.p_range is twin
  f32 inverse_twin;        // 2^-p_split
  UserValue user[8];       // arrays of score_mod, then of mask_mod; their numbers likewise
  // If S.rules.varlen; see sequences.cuh. Strides of batches are 0 if sequences lie end to end.
  const i32* cu_seqlens_q; // [batch + 1], both or neither
  const i32* cu_seqlens_k;
  const i32* seqused_k;    // [batch]; may be null
  i32 max_seqlen_q;        // seqlen_q and seqlen_kv of a sequence are no more
  i32 max_seqlen_kv;
  i32 q_pitch;             // rows of a head in q_scale, lse and lse_shift: seqlen_q, or all
  i32 kv_pitch;            // keys of a head that scales are padded to, alike
  i32 total_kv;            // tokens of the caller's K and V
  i32 mask_columns;        // if S.rules.mask_last; keys before them are seen, and add nothing
  i32 user_batch;          // what expressions count the launch's sequences and heads of Q from
  i32 user_head;
};

// What the Hopper family takes: q, k and v of `attention` are read through the maps alone.
struct WgmmaParams {
  TensorMap q_map;         // [batch, num_q_heads, seqlen_q, head_dim]
  TensorMap k_map;         // [batch, num_kv_heads, seqlen_kv, head_dim]
  TensorMap v_map;         // 8 bits: [batch * num_kv_heads, blocks, S.head_dim_v, 128]; else
                           // [batch, num_kv_heads, seqlen_kv, head_dim_v]
  AttentionParams attention;
  u32* next_item;          // counts the items that CTAs have taken after their first; starts at 0;
                           // null if every CTA has one only
  i32 items;               // row_blocks * num_q_heads * batch
  i32 heads_at_a_time;     // query heads, of whole groups, that are attended together
  const i32* units;        // of units.cu; null if items are those of sequences of seqlen_q rows
  const i32* unit_count;
};
