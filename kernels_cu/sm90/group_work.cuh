// The parts of the problem and the order in which CTAs solve them.
#pragma once
#include "attn/mask.cuh"
#include "params.cuh"
#include "sm90/tile_shape.cuh"

// Blocks of keys that some of 64 rows see: the first `unmasked` ones are seen whole by every row.
struct KeyBlocks {
  int unmasked;
  int end;
};

// An item is `groups` times 64 query rows of one head; a CTA attends with one after the other.
// Their order is that of their indices: those that follow each other share K and V or use those of
// few heads, so that CTAs find them in the L2 cache, and no long one comes last.
template <WgmmaSpec S>
struct Item {
  int batch;
  int kv_head;
  int head;
  int first_row;
  int end;  // blocks of keys that some row sees

  __device__ __forceinline__ Item(const WgmmaParams& p, int index) {
    const AttentionParams& a = p.attention;
    const int num_heads = p.items / a.row_blocks;  // of all batches
    // Rows that do not fill an item come after all that do, but not under a mask, which makes them
    // the longest.
    const int row_blocks = S.is_causal ? a.row_blocks : a.seqlen_q / TileShape<S>::kRows;
    const int rest = index - num_heads * row_blocks;
    int all_heads = rest;
    int row_block = row_blocks;
    if (rest < 0) {
      // Some heads at a time, all of them with the longest rows first.
      const int first = index / (p.heads_at_a_time * row_blocks) * p.heads_at_a_time;
      const int heads = min_of(p.heads_at_a_time, num_heads - first);
      const int within = index - first * row_blocks;
      all_heads = first + within % heads;
      row_block = S.is_causal ? row_blocks - 1 - within / heads : within / heads;
    }
    batch = all_heads / a.num_q_heads;
    head = all_heads % a.num_q_heads;
    kv_head = head / a.heads_per_kv;
    first_row = row_block * TileShape<S>::kRows;
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
    return min_of(max_of(seen_keys(row, a.seqlen_q, a.seqlen_kv), 0), a.seqlen_kv);
  }
};
