// Where in the list of all heads' blocks a CTA is (partition.cuh), and how many blocks a head has.
#pragma once
#include "kv/decode_shape.cuh"

// A block in the list, which is ordered by sequence, head and block. A head is that of K and V with
// one tile of its rows of Q.
struct BlockCursor {
  int sequence;
  int head;    // kv_head * row_tiles + row tile
  int block;   // of those in the list
  int blocks;  // of a head
  int length;  // tokens of the sequence
  int ahead;   // empty places of a head in the list, before its blocks
  int behind;  // and behind them

  __device__ __forceinline__ int places() const { return ahead + blocks + behind; }
};

template <DecodeSpec S>
struct HeadBlocks {
  u32 reach;   // of S.window: see hidden_tokens
  int recent;  // of S.nested: units at a sequence's end that have lower halves

  __device__ __forceinline__ explicit HeadBlocks(const DecodeParams& p) {
    if constexpr (S.window) reach = static_cast<u32>(p.window_left) + p.seqlen_q;
    if constexpr (S.nested) recent = p.store.recent_units;
  }

  // Tokens at the beginning of a sequence that no row sees; blocks of these are not in the list.
  __device__ __forceinline__ int hidden(int length) const {
    return S.window ? hidden_tokens(length, reach) : 0;
  }
  __device__ __forceinline__ int hidden_blocks(int length) const {
    return hidden(length) / kKvBlock;
  }

  __device__ __forceinline__ int blocks_in(int length) const {
    return static_cast<int>(ceil_div<u32>(length, kKvBlock)) - hidden_blocks(length);
  }

  // Makes what a length says of a head, but for empty places ahead of its blocks.
  __device__ __forceinline__ void count(BlockCursor& at, int length) const {
    at.length = length;
    at.blocks = blocks_in(length);
    at.ahead = 0;
    at.behind = 0;
    if constexpr (S.nested) {
      if (recent == 0) return;
      const int units = static_cast<int>(ceil_div<u32>(length, kUnitTokens));
      const int first_recent = max_of(units - recent, 0) / kBlockUnits;
      const int all = static_cast<int>(ceil_div<u32>(length, kKvBlock));
      at.behind = min_of(all - first_recent, at.blocks);
    }
  }
};

// Which blocks of which heads a CTA has: partition.cuh, or own_parts.cuh.
template <DecodeSpec S, bool Own = S.batch_invariant>
struct Partition;
