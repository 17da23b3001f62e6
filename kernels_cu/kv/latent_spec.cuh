// What the kernels of the latent cache fix at compile time; cuattn/latent/spec.py mirrors it.
#pragma once
#include "kv/kv_spec.cuh"

struct LatentDecodeSpec {
  Type input;       // elements of Q and O
  Type rope;        // of the cache's rotary channels: fp16 or bf16
  int rows;         // of one CTA: queries times heads; 16, 32 or 64
  int stages;       // blocks of 128 tokens in shared memory
  bool warpgroups;  // products are those of warpgroups, on sm_90a alone; of 64 rows
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct LatentMergeSpec {
  Type input;       // elements of O
  int rows;         // of a part: those of the LatentDecodeSpec
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct LatentAppendSpec {
  Type input;       // elements of the tokens
  Type rope;        // what their rotary channels become: fp16 or bf16
  bool aligned;     // bases and strides of the arrays are multiples of 16 bytes
  bool packed;      // sequences lie end to end: packed_tokens.cuh
  int num_threads;
  int min_ctas;
  int smem_bytes;
};
