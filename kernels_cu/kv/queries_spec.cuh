// What the kernel fixes at compile time that makes codes of many queries to a KV cache;
// cuattn/kv/queries_spec.py mirrors it.
#pragma once
#include "spec.cuh"

struct QueriesSpec {
  Type input;       // elements of Q
  int head_dim;     // channels of codes
  int channels;     // of those the ones that arrays have: a multiple of 16
  bool rotate;      // queries, along head_dim
  bool rope;        // queries turn by their positions first
  int num_threads;
  int min_ctas;
  int smem_bytes;
};
