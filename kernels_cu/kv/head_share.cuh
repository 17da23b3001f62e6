// The heads that a CTA has blocks of, one after the other.
#pragma once
#include "kv/own_parts.cuh"
#include "kv/partition.cuh"

// Blocks of one head that a CTA has, at `at` and after; none if its places are empty.
struct HeadShare {
  BlockCursor at;
  int begin;      // place of the head's first block in the list, none of its empty ones
  int last;       // end of the blocks
  bool is_first;  // of the CTA's
  bool is_whole;  // no other CTA has any of the head

  // At a place `n` of the list, in a share that ends at `end`.
  __device__ __forceinline__ HeadShare(const BlockCursor& cursor, int n, int end, bool first)
      : at(cursor), begin(n - cursor.block), is_first(first) {
    at.block = max_of(at.block, 0);
    last = min_of(at.blocks, end - begin);
    is_whole = at.block == 0 && last == at.blocks;
  }

  // From `at` up to `last`, and nothing else of the CTA's.
  __device__ __forceinline__ HeadShare(const BlockCursor& at, int last)
      : at(at), begin(0), last(last), is_first(true) {
    is_whole = at.block == 0 && last == at.blocks;
  }
};

// Calls f for each head that a CTA has a share of. By whole warps.
template <DecodeSpec S, class F>
__device__ __forceinline__ void for_heads(const Partition<S>& partition, F f) {
  if constexpr (S.batch_invariant) {
    const BlockCursor own = partition.at(blockIdx.x);
    f(HeadShare(own, min_of(own.block + partition.part_blocks(own.blocks), own.blocks)));
  } else {
    const int begin = partition.begin(blockIdx.x);
    const int end = partition.begin(blockIdx.x + 1);
    BlockCursor at = partition.at(begin);
#pragma unroll 1
    for (int n = begin; n < end;) {
      const HeadShare head(at, n, end, n == begin);
      if (!S.nested || head.at.block < head.last) f(head);
      n = head.begin + (S.nested ? at.blocks + at.behind : head.last);
      if (n < end) partition.next_head(at);
    }
  }
}
