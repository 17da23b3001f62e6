// The order in which blocks of keys are visited: from the last to the first, as FlashAttention-3
// does, so that P is rounded against maxima that later blocks do not exceed by much where the first
// keys take most of the weight.
#pragma once
#include "attn/mask.cuh"

constexpr int kMapRows = 64;  // of a tile of the map, and its keys

// Those of a range, or, under a mask, those of them in which the map of some tiles of rows has keys.
template <auto S, int Tiles>
struct Visits {
  static constexpr int kBits = S.block_kv / kMapRows;  // of a block in the map
  static constexpr u32 kOnes = (1u << kBits) - 1;
  int begin;
  int at;         // blocks from here on have been visited; or, mapped, the word that is pending
  u32 pending;    // bits of this word that are still to come
  const u32* map[Tiles];

  // `row` is the first of the first tile.
  __device__ __forceinline__ Visits(const AttentionParams& p, int batch, int head, int row,
                                    KeyRange blocks)
      : begin(blocks.begin), at(max_of(blocks.end, blocks.begin)) {
    if constexpr (S.rules.mapped()) {
      const i64 of_head = batch * p.map_stride_batch + head * p.map_stride_head;
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        const int tile = min_of(row + i * kMapRows, p.seqlen_q - 1) / kMapRows;
        map[i] = p.mask_map + of_head + tile * p.map_stride_tile;
      }
      const int end = at * kBits;
      at = end / 32;
      pending = end % 32 ? some(at) & ((1u << end % 32) - 1) : 0;
    }
  }

  // The next block, or -1 if there is none.
  __device__ __forceinline__ int next() {
    if constexpr (S.rules.mapped()) {
      while (pending == 0) {
        if (at * 32 <= begin * kBits) return -1;
        pending = some(--at);
      }
      const int bit = (31 - __clz(pending)) / kBits * kBits;
      pending &= (1u << bit) - 1;
      const int block = (at * 32 + bit) / kBits;
      return block >= begin ? block : -1;
    } else {
      return at > begin ? --at : -1;
    }
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
