// What the quantizing kernels fix at compile time; cuattn/specs/quantize.py and
// cuattn/specs/stats.py mirror it.
#pragma once
#include "spec.cuh"

struct QuantizeSpec {
  Type input;          // elements of Q, K and V
  Type q;              // what each operand becomes: int8, int4 or e4m3 codes, fp16 or bf16 values
  Type k;
  Type v;
  int qk_bits;         // of an integer code: 4 in an int8 are one code a byte
  int v_bits;
  int head_dim;        // of Q and K, padded; the padding is written as zeros
  int head_dim_v;      // of V, likewise
  Scope q_scope;       // token, group, thread, block (of 128 rows) or tensor
  Scope k_scope;       // token, group, thread, sorted, block (of k_block keys) or tensor
  Scope k_stored;      // token, group, thread, sorted or block: how K's scales lie in memory
  int k_block;         // keys of a block
  int qk_group;        // channels of a group
  bool q_smooth;       // a vector is subtracted from every 128 queries
  bool k_smooth;       // a vector is subtracted from every key
  bool rotate;         // Q and K are rotated
  Scope v_scope;       // token, sorted (as K's), block (of 128 tokens), channel or tensor
  bool v_smooth;
  bool aligned;        // bases and strides of the inputs are multiples of 16 bytes
  bool varlen;         // lengths are read from memory
  int qk_lanes;        // at most so many share a row of Q or K; as many as may be if it is 0
  bool k_read_again;   // rows of K are read twice: registers do not hold those of a CTA
  bool staged;         // rows of Q and K come a tile ahead, by way of shared memory
  bool v_staged;       // so do those of V, which are sorted
  int q_tile;          // tokens of one CTA
  int k_tile;
  int v_tile;
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct StatsSpec {
  Type input;
  int head_dim;       // padded
  bool aligned;
  bool k_sample;      // the mean is taken over at most kSample tokens, in one chunk
  bool v_sample;
  bool qk_range;      // smallest and largest element of channels too; only then is there a Q
  bool v_range;
  bool varlen;        // lengths are read from memory
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct FinishSpec {
  int head_dim;
  bool qk_range;
  bool v_range;
  bool varlen;
  int num_threads;
  int min_ctas;
  int smem_bytes;
};
