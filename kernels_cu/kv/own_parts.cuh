// Parts of a head that depend on its own length only, one of a CTA each: a sequence has the same
// bits alone and in any batch. reference/partition.py has the same.
#pragma once
#include "kv/block_cursor.cuh"

// Blocks of a part, at least. A part is stored and merged, which costs what a few blocks do.
constexpr int kLeastPart = 8;

template <DecodeSpec S>
struct Partition<S, true> : HeadBlocks<S> {
  using Blocks = HeadBlocks<S>;
  const i32* lengths;
  int heads;  // of a sequence
  int most;   // parts of a head

  __device__ __forceinline__ explicit Partition(const DecodeParams& p)
      : Blocks(p),
        lengths(p.store.lengths),
        heads(p.store.num_kv_heads * p.row_tiles),
        most(p.parts) {}

  __device__ __forceinline__ int part_blocks(int blocks) const {
    return max_of(ceil_div(blocks, most), kLeastPart);
  }
  __device__ __forceinline__ int parts_in(int length) const {
    const int blocks = Blocks::blocks_in(length);
    return ceil_div(blocks, part_blocks(blocks));
  }

  // The CTA of the first part of a head; those of others follow.
  __device__ __forceinline__ int first_cta(const BlockCursor& at) const {
    return (at.sequence * heads + at.head) * most;
  }

  // The first block of a CTA's part, which is none if it has no share.
  __device__ __forceinline__ BlockCursor at(int cta) const {
    const int head = quotient(cta, most);
    BlockCursor at;
    at.sequence = quotient(head, heads);
    at.head = head - at.sequence * heads;
    at.length = __ldg(lengths + at.sequence);
    at.blocks = Blocks::blocks_in(at.length);
    at.block = (cta - head * most) * part_blocks(at.blocks);
    return at;
  }
  __device__ __forceinline__ bool has_share(int cta) const {
    const BlockCursor of_cta = at(cta);
    return of_cta.block < of_cta.blocks;
  }
};
