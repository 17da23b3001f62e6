// Run-time arguments of the kernels of the KV cache; cuattn/compile/params.py reads them from here.
#pragma once
#include "kv/reciprocal.cuh"
#include "kv/rope_params.cuh"
#include "user_value.cuh"

// Where the units of a cache are (unit.cuh): [page, kv head, unit of the page].
struct KvStore {
  u8* units;
  const i32* pages;        // [batch, pages_per_sequence]; null: sequence b is page b
  i32* lengths;            // [batch], tokens of each sequence
  f32* k_offset;           // [batch, num_kv_heads, channels], taken from keys; null: nothing is
  i32* bare;               // [batch], first keys it is not taken from: kFirstTokens, less evicted
  u8* fine;                // fine_units.cuh: [batch, num_kv_heads, place, unit_bytes]
  i32* coarse;             // [batch], the first of the newest units that are there
  i64 page_stride;         // bytes
  i64 head_stride;         // bytes
  i32 page_units;          // units of one head in a page; a power of two if there are pages
  i32 pages_per_sequence;
  i32 batch;
  i32 num_kv_heads;
  i32 first_units;         // places in `fine` of the first units of a sequence
  i32 recent_units;        // and of its newest ones
};

struct DecodeParams {
  KvStore store;
  const void* q;           // [batch, num_q_heads, seqlen_q, head_dim]
  void* o;                 // alike
  f32* lse;                // [batch, num_q_heads, seqlen_q], natural log; may be null
  f32* partials;           // workspace, see partials.cuh
  u32* arrivals;           // [batch, num_kv_heads, row_tiles], zero before and after
  i64 q_stride_batch;      // strides in elements
  i64 q_stride_head;
  i64 q_stride_row;
  i64 o_stride_batch;
  i64 o_stride_head;
  i64 o_stride_row;
  i32 heads_per_kv;        // query heads that share one head of K and V
  i32 seqlen_q;
  i32 row_tiles;           // ceil(heads_per_kv * seqlen_q / S.rows)
  i32 ctas_of_head;        // those that share the blocks by arrivals, of nested codes; may be 0
  Reciprocal by_heads_per_kv;
  Reciprocal by_row_tiles;
  Reciprocal by_ctas;      // those that share the blocks: partition.cuh
  Reciprocal by_ctas_of_head;  // if it is not 0
  i32 parts;               // CTAs of each head and tile of rows, if S.batch_invariant; of the
                           // latent cache all, if merge_latent.cu merges what they leave, else 0
  i32 is_causal;           // query i of n sees the first length - n + 1 + i tokens
  i32 q_aligned;           // whether rows of Q begin at multiples of 16 bytes
  f32 softmax_scale;
  // For those whose DecodeSpec asks for it. Strides in elements, 0 where there is one for all.
  i32 window_left;         // query i of n, beside token length - n + i, sees so many before it
  i32 window_right;        // and so many behind it; then there is no is_causal
  f32 softcap;
  const void* sinks;       // [num_q_heads]
  const void* alibi_slopes;  // [batch, num_q_heads]
  const void* attn_mask;   // [batch, num_q_heads, seqlen_q, mask_columns], of so many last tokens
  i64 sinks_stride_head;
  i64 alibi_slopes_stride_batch;
  i64 alibi_slopes_stride_head;
  i64 attn_mask_stride_batch;
  i64 attn_mask_stride_head;
  i64 attn_mask_stride_row;
  i64 attn_mask_stride_column;
  i32 mask_columns;
  RopeParams rope;
  UserValue user[8];       // arrays of score_mod, then of mask_mod; their numbers likewise
};

// Tokens of several sequences end to end: packed_tokens.cuh. Only for those whose spec asks for it.
struct PackedParams {
  const i32* bounds;       // [parts + 1], rows at which the parts begin and end
  const i32* parts;        // [batch], which one is a sequence's, -1: none; null: of its own number
  i32 shares;              // CTAs of a head, if it has several
};

struct AppendParams {
  KvStore store;
  const void* k;           // [batch, num_kv_heads, seqlen, head_dim]; packed: of a batch of 1
  const void* v;           // alike
  const i32* counts;       // [batch], tokens of each sequence that are appended; null: seqlen
  const i32* limits;       // [batch], tokens that each sequence has room for
  u32* arrivals;           // one counter, zero before and after
  i32* refused;            // set to 1 if a sequence lacked room: then nothing was appended at all
  i64 k_stride_batch;      // strides in elements
  i64 k_stride_head;
  i64 k_stride_token;
  i64 v_stride_batch;
  i64 v_stride_head;
  i64 v_stride_token;
  i32 seqlen;
  RopeParams rope;
  PackedParams packed;
};

// Makes store.k_offset of sequences with no more than one unit, which are about to be appended to.
struct OffsetParams {
  KvStore store;
  const void* k;           // as in AppendParams
  const i32* counts;
  const i32* limits;
  const i32* fixed;        // [batch], not 0: the offset stays what it is; null: none does
  i64 k_stride_batch;
  i64 k_stride_head;
  i64 k_stride_token;
  i32 seqlen;
  RopeParams rope;
  PackedParams packed;
};

// Operands of attention that are made of a cache: those of QuantizeParams for sorted keys.
struct OperandsParams {
  KvStore store;
  void* k_codes;           // [place, kSortedBlock, head_dim], of a place for each block
  f32* k_scale;            // [place, kPlaceScales]
  void* v_codes;           // [place, head_dim, kSortedBlock]
  f32* v_scale;            // [place, 3, kPlaceScales]
  u8* order;               // [place, kSortedBlock]
  i64 places_of_sequence;  // from one sequence's first place to the next one's
  i64 places_of_head;      // the same of heads
  i32* bounds;             // [batch + 1], becomes multiples of bound_step; may be null
  i32 bound_step;
  i32 blocks;              // of a head: tokens beyond them are left out
  i32 window;              // blocks without any of a sequence's so many last tokens are left out
};

// Codes of queries for attention with those operands.
struct CacheQueriesParams {
  const void* q;           // [batch, num_q_heads, seqlen_q, channels]
  u8* codes;               // [batch, num_q_heads, pitch, head_dim]; with bounds no batch
  f32* scale;              // [batch, num_q_heads, pitch]
  f32* lse_shift;          // alike: what smoothing takes from the logits of each row; may be null
  const f32* k_offset;     // as in KvStore
  const i32* lengths;      // [batch], tokens of each sequence
  const i32* ends;         // [batch], positions behind their last ones; null: as many as lengths
  const i32* cu_seqlens_q;  // [batch + 1], bounds of rows that are end to end; null: seqlen_q each
  i64 q_stride_batch;      // strides in elements
  i64 q_stride_head;
  i64 q_stride_row;
  i32 num_q_heads;
  i32 heads_per_kv;        // query heads that share one head of K and V
  i32 seqlen_q;            // most rows of a sequence
  i32 pitch;               // rows of a head: of all sequences, or seqlen_q
  i32 tiles;               // of the rows of a CTA, in seqlen_q
  i32 q_aligned;           // whether rows of Q begin at multiples of 16 bytes
  f32 softmax_scale;
  RopeParams rope;
};
