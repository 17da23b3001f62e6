// The part of the problem that one CTA solves.
#pragma once
#include "attn/shape.cuh"
#include "params.cuh"

// Which rows of which head a CTA owns. The grid is (row_blocks * heads_per_kv * v_parts,
// num_kv_heads, batches from p.first_batch on): what K and V need are coordinates of the CTA, which
// the compiler knows to be the same for all threads and keeps in uniform registers. A grid has at
// most 65535 batches; others are those of further launches.
template <AttentionSpec S>
struct Work {
  int batch;
  int kv_head;
  int head;
  int first_row;
  i64 batch_head;
  i64 batch_kv_head;

  __device__ __forceinline__ Work(const AttentionParams& p, int x) {
    batch = p.first_batch + static_cast<int>(blockIdx.z);
    kv_head = blockIdx.y;
    x /= S.v_parts;
    head = kv_head * p.heads_per_kv + x / p.row_blocks;
    const int row_block = x % p.row_blocks;
    // The longest rows first, so that no CTA starts a long one when the others end.
    first_row = (S.is_causal ? p.row_blocks - 1 - row_block : row_block) * Shape<S>::kRows;
    batch_head = static_cast<i64>(batch) * p.num_q_heads + head;
    batch_kv_head = static_cast<i64>(batch) * gridDim.y + kv_head;
  }
};
