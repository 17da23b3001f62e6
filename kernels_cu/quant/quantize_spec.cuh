// What a quantizing kernel fixes at compile time; cuattn/quantize_spec.py mirrors it.
#pragma once
#include "spec.cuh"

struct QuantizeSpec {
  Type input;          // elements of Q, K and V
  Type q;              // what each operand becomes: int8 or e4m3 codes, or fp16 or bf16 values
  Type k;
  Type v;
  int head_dim;        // padded; the padding is written as zeros
  bool qk_per_tensor;  // all of a head of Q has one scale, and all of one of K
  Scope k_scope;       // token or block, of the scales as they are stored
  int k_block;         // keys of a block
  bool k_smooth;       // a vector is subtracted from every key
  Scope v_scope;       // token or channel
  bool v_per_tensor;   // all channels of a head have the scale of the largest
  bool v_smooth;
  bool aligned;        // bases and strides of the inputs are multiples of 16 bytes
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
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct FinishSpec {
  int head_dim;
  bool qk_range;
  bool v_range;
  int num_threads;
  int min_ctas;
  int smem_bytes;
};
