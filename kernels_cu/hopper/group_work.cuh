// The parts of the problem and the order in which CTAs solve them.
#pragma once
#include "hopper/tile_shape.cuh"
#include "params.cuh"

// Blocks of keys that some of 64 rows see: the first `unmasked` ones are seen whole by every row.
struct KeyBlocks {
  int unmasked;
  int end;
};

// Item by item, a CTA attends with `groups` times 64 query rows of one head. Items that follow each
// other share K and V, so that the CTAs that run at a time find them in the L2 cache.
template <WgmmaSpec S>
struct Item {
  int batch;
  int kv_head;
  int head;
  int first_row;
  int end;  // blocks of keys that some row sees

  __device__ __forceinline__ Item(const WgmmaParams& p, int index) {
    const AttentionParams& a = p.attention;
    const int of_kv_head = a.row_blocks * a.heads_per_kv;
    const int batch_kv_head = index / of_kv_head;
    const int row_block = index % of_kv_head % a.row_blocks;
    const int num_kv_heads = a.num_q_heads / a.heads_per_kv;
    batch = batch_kv_head / num_kv_heads;
    kv_head = batch_kv_head % num_kv_heads;
    head = kv_head * a.heads_per_kv + index % of_kv_head / a.row_blocks;
    // The longest rows first.
    first_row = (S.is_causal ? a.row_blocks - 1 - row_block : row_block) * TileShape<S>::kRows;
    const int last_row = min_of(first_row + TileShape<S>::kRows, a.seqlen_q) - 1;
    end = ceil_div(seen_by(a, last_row), static_cast<i32>(S.block_kv));
  }

  __device__ __forceinline__ i64 batch_head(const AttentionParams& a) const {
    return static_cast<i64>(batch) * a.num_q_heads + head;
  }
  __device__ __forceinline__ i64 batch_kv_head(const AttentionParams& a) const {
    return static_cast<i64>(batch) * (a.num_q_heads / a.heads_per_kv) + kv_head;
  }

  // Those of the 64 rows from `row` on.
  __device__ __forceinline__ KeyBlocks blocks(const AttentionParams& a, int row) const {
    if (row >= a.seqlen_q) return {0, 0};
    const int last = min_of(row + kGroupRows, a.seqlen_q) - 1;
    return {seen_by(a, row) / S.block_kv,
            ceil_div(seen_by(a, last), static_cast<i32>(S.block_kv))};
  }

  // Keys that a row sees.
  static __device__ __forceinline__ int seen_by(const AttentionParams& a, int row) {
    if constexpr (!S.is_causal) return a.seqlen_kv;
    return min_of(max_of(row + 1 + a.seqlen_kv - a.seqlen_q, 0), a.seqlen_kv);
  }
};

// A CTA's items: every gridDim.x-th, every other round in reverse, so that none gets the longest
// ones of all rounds.
struct Items {
  int round = 0;

  __device__ __forceinline__ bool next(const WgmmaParams& p, int& index) {
    const int cta = round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    index = round++ * gridDim.x + cta;
    // Only the last round is incomplete.
    return index < p.items;
  }
};
