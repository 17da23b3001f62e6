// The parts of the problem and the order in which CTAs solve them.
#pragma once
#include "attn/visits.cuh"
#include "params.cuh"
#include "sm90/tile_shape.cuh"

// An item is `groups` times 64 query rows of one head; a CTA attends with one after the other.
// Their order is that of their indices: those that follow each other share K and V or use those of
// few heads, so that CTAs find them in the L2 cache, and no long one comes last.
template <WgmmaSpec S>
struct Item {
  int batch;
  int kv_head;
  int head;
  int first_row;
  KeyRange all;  // blocks of keys that some row sees by its position

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
    all = block_range<S>(a, first_row, TileShape<S>::kRows).all;
  }

  __device__ __forceinline__ i64 batch_head(const AttentionParams& a) const {
    return static_cast<i64>(batch) * a.num_q_heads + head;
  }
  __device__ __forceinline__ i64 batch_kv_head(const AttentionParams& a) const {
    return static_cast<i64>(batch) * (a.num_q_heads / a.heads_per_kv) + kv_head;
  }

  // Those that some of the 64 rows from `row` on see.
  __device__ __forceinline__ BlockRange blocks(const AttentionParams& a, int row) const {
    if (row >= a.seqlen_q) return {{all.begin, all.begin}, {all.begin, all.begin}};
    return block_range<S>(a, row, kGroupRows);
  }

  __device__ __forceinline__ Visits<S, S.groups> visits(const AttentionParams& a) const {
    return {a, batch, head, first_row, all};
  }
};
