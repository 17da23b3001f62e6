// The order in which blocks of keys are visited: as they come, but for the first, which is last.
//
// Where the first keys take most of the weight, as they do in trained models, P of all others would
// be rounded against their maximum. FlashAttention-3 goes from the last block to the first, to the
// same effect; but then under a causal mask the first reference of a row is of few keys, and all
// warpgroups end their rows at the same time (docs/lab-notebook.md).
#pragma once
#include "attn/mask.cuh"

constexpr int kMapRows = 64;  // of a tile of the map, and its keys

// The blocks of a range, or, under a mask, those in which the map of some tiles of rows has keys.
template <auto S, int Tiles>
struct Visits {
  static constexpr int kBits = S.block_kv / kMapRows;  // of a block in the map
  static constexpr u32 kOnes = (1u << kBits) - 1;
  int at;        // the next block; or, mapped, the word that is pending
  int end;
  bool first;    // block 0 is still to come
  u32 pending;   // bits of this word that are still to come
  const u32* map[Tiles];

  // `row` is the first of the first tile.
  __device__ __forceinline__ Visits(const AttentionParams& p, int batch, int head, int row,
                                    KeyRange blocks)
      : at(max_of(blocks.begin, 1)), end(blocks.end), first(blocks.begin < min_of(blocks.end, 1)) {
    if constexpr (S.rules.mapped()) {
      const i64 of_head = batch * p.map_stride_batch + head * p.map_stride_head;
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        const int tile = min_of(row + i * kMapRows, p.seqlen_q - 1) / kMapRows;
        map[i] = p.mask_map + of_head + tile * p.map_stride_tile;
      }
      first = first && (some(0) & kOnes) != 0;
      const int bit = at * kBits;
      at = bit / 32;
      pending = at * 32 < end * kBits ? some(at) & 0xffffffffu << bit % 32 : 0;
    }
  }

  // The next block, or -1 if there is none.
  __device__ __forceinline__ int next() {
    if constexpr (S.rules.mapped()) {
      while (pending == 0 && (at + 1) * 32 < end * kBits) pending = some(++at);
      if (pending != 0) {
        const int bit = (__ffs(pending) - 1) / kBits * kBits;
        pending &= ~(kOnes << bit);
        const int block = (at * 32 + bit) / kBits;
        if (block < end) return block;
        pending = 0;
        at = end;
      }
    } else if (at < end) {
      return at++;
    }
    const bool is_left = first;
    first = false;
    return is_left ? 0 : -1;
  }

  // Whether all rows of the tiles see a block that was just visited whole, which adds nothing.
  __device__ __forceinline__ bool whole(const AttentionParams& p, int block) const {
    u32 word = 0xffffffffu;
#pragma unroll
    for (int i = 0; i < Tiles; ++i) word &= __ldg(map[i] + p.mask_words + block * kBits / 32);
    return (word >> block * kBits % 32 & kOnes) == kOnes;
  }

 private:
  __device__ __forceinline__ u32 some(int word) const {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < Tiles; ++i) bits |= __ldg(map[i] + word);
    return bits;
  }
};
