// Where in the list of all heads' blocks a CTA is; see partition.cuh.
#pragma once

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
