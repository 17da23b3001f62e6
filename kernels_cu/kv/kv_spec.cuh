// What the kernels of the KV cache fix at compile time; cuattn/kv/spec.py and append_spec.py mirror
// it. The fields from head_dim to nested are those of cuattn/kv_format.py, of which unit.cuh makes
// the layout.
#pragma once
#include "spec.cuh"

// Elements of an array of the caller's that a kernel reads if there is one.
enum class Extra { none, boolean, fp16, bf16, fp32 };

struct DecodeSpec {
  Type input;       // elements of Q and O
  int head_dim;     // channels of units
  int channels;     // of those the ones that arrays have: a multiple of 16
  int k_bits;
  int v_bits;
  int group;        // channels that share a scale of 4-bit codes, or 0
  bool v_zero;
  bool rotate;      // keys and queries, along head_dim
  bool nested;      // codes are the upper halves of those of 8 bits: unit.cuh
  int rows;         // of one CTA: queries times heads that share a head of K and V; 8, or 16 n
  int stages;       // blocks of 128 tokens in shared memory
  bool window;      // rows see a part of the tokens beside their own: DecodeParams::window_left
  bool softcap;
  Extra sinks;
  Extra alibi_slopes;
  Extra attn_mask;
  bool batch_invariant;  // a head's parts depend on its own length only: own_parts.cuh
  bool rope;        // queries turn by their positions first
  bool score_mod;   // the caller's own expressions: user_scores.cuh
  bool mask_mod;
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct AppendSpec {
  Type input;       // elements of K and V
  int head_dim;     // channels of units
  int channels;     // of those the ones that arrays have: a multiple of 16
  int k_bits;
  int v_bits;
  int group;
  bool v_zero;
  bool rotate;      // keys and queries, along head_dim
  bool nested;      // codes are the upper halves of those of 8 bits: unit.cuh
  bool aligned;     // bases and strides of K and V are multiples of 16 bytes
  bool single;      // one new token of each sequence
  bool rope;        // keys turn by their positions first
  bool packed;      // sequences lie end to end: packed_tokens.cuh
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct OffsetSpec {
  Type input;       // elements of K
  int head_dim;
  bool aligned;
  bool rope;        // the mean is of keys turned by their positions
  bool packed;      // sequences lie end to end: packed_tokens.cuh
  int num_threads;
  int min_ctas;
  int smem_bytes;
};
