// Which keys a query row sees: those beside it, aligned at the bottom right, that no mask hides.
#pragma once
#include "attn/mask_rows.cuh"
#include "attn/p_range.cuh"
#include "attn/sequence_params.cuh"
#include "layout.cuh"

// The keys that a row sees under a causal mask are so many, not more than there are; none if it is
// not positive. Lengths are subtracted first: of 2^30 rows and keys the sum is no int.
__host__ __device__ constexpr int seen_keys(int row, int seqlen_q, int seqlen_kv) {
  return row + 1 + (seqlen_kv - seqlen_q);
}

// Keys, or blocks of them: [begin, end).
struct KeyRange {
  int begin;
  int end;
};

// The keys that a row sees by its position.
template <auto S>
__device__ __forceinline__ KeyRange visible_keys(const AttentionParams& p, int row) {
  KeyRange keys = {0, p.seqlen_kv};
  if constexpr (S.is_causal) {
    keys.end = min_of(max_of(seen_keys(row, p.seqlen_q, p.seqlen_kv), 0), p.seqlen_kv);
  }
  if constexpr (S.rules.windowed) {
    // Sides may be as long as an int: they are compared before they are added.
    const int own = row + (p.seqlen_kv - p.seqlen_q);
    if (p.window_right < p.seqlen_q - row) keys.end = max_of(own + 1 + p.window_right, 0);
    keys.end = min_of(keys.end, p.seqlen_kv);
    if (p.window_left < own) keys.begin = min_of(own - p.window_left, p.seqlen_kv);
  }
  return keys;
}

// Whether a row sees no key. If masks decide, what the row has in the end says so.
template <auto S>
__device__ __forceinline__ bool sees_nothing(const AttentionParams& p, int row, float reference,
                                             float sum) {
  if constexpr (S.rules.mapped() || S.rules.hide_anywhere()) {
    return reference == kNoKeySeen && sum == 0.0f;
  }
  const KeyRange keys = visible_keys<S>(p, row);
  return keys.end <= keys.begin;
}

// The blocks of keys that some of `count` rows from `row` on see by their position: all of them,
// and among them those that every row sees whole. Without any of these, whole is where all end.
struct BlockRange {
  KeyRange all;
  KeyRange whole;
};

template <auto S>
__device__ __forceinline__ BlockRange block_range(const AttentionParams& p, int row, int count) {
  constexpr int kBlock = S.block_kv;
  const KeyRange first = visible_keys<S>(p, row);
  const KeyRange last = visible_keys<S>(p, min_of(row + count, p.seqlen_q) - 1);
  BlockRange blocks;
  blocks.all = {first.begin / kBlock, ceil_div(last.end, kBlock)};
  blocks.whole = {0, first.end / kBlock};
  if constexpr (S.rules.windowed) {
    blocks.whole.begin = ceil_div(last.begin, kBlock);
    if (blocks.whole.end <= blocks.whole.begin) blocks.whole = {blocks.all.begin, blocks.all.begin};
  }
  return blocks;
}

// Where in a block the columns of a lane begin; sorted keys are counted from the first of a block.
template <auto S>
__device__ __forceinline__ int first_column(int lane) {
  return S.k_scope == Scope::sorted ? 0 : 2 * (lane % 4);
}

// The keys of one block that the two rows of a lane see. S is the spec of either family.
template <auto S>
struct Mask {
  static constexpr bool kSorted = S.k_scope == Scope::sorted;
  static constexpr bool kBits = S.rules.attn_mask == MaskKind::bits;
  static constexpr int kWords = S.block_kv / 32;
  int first[2];  // MMA column 8 * key_tile + e, or a token of sorted ones, is seen from this on
  int limit[2];  // and up to here
  u32 seen[2][kWords];  // by a mask of bits
  bool ordered;  // sorted keys have an order of their own
  int first_key;  // of which `first` and `limit` count
  const UserRows<S>& user;

  __device__ __forceinline__ Mask(const AttentionParams& p, const MaskRows<S>& rows, int first_row,
                                  int block, int lane)
      : ordered(p.order != nullptr),
        first_key(block * S.block_kv + first_column<S>(lane)),
        user(rows.user) {
    const int lane_column = first_column<S>(lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 8 * half + lane / 4;
      int end = p.seqlen_kv;
      first[half] = 0;
      if constexpr (S.rules.windowed) {
        const KeyRange keys = visible_keys<S>(p, row);
        end = keys.end;
        first[half] = keys.begin - block * S.block_kv - lane_column;
      } else if constexpr (S.is_causal) {
        end = min_of(end, seen_keys(row, p.seqlen_q, p.seqlen_kv));
      }
      limit[half] = end - block * S.block_kv - lane_column;
      if constexpr (kBits) {
        rows.load_bits(seen[half], half, block);
#pragma unroll
        for (u32& word : seen[half]) word >>= lane_column;
      }
    }
  }

  __device__ __forceinline__ bool sees(int key_tile, int element) const {
    const int column = 8 * key_tile + element % 2;
    const int half = element / 2;
    bool sees = column < limit[half];
    if constexpr (S.rules.windowed) sees = sees && column >= first[half];
    if constexpr (kBits) sees = sees && seen[half][column / 32] >> column % 32 & 1;
    if constexpr (S.rules.mask_mod) sees = sees && user.sees(half, first_key + column);
    return sees;
  }
  // Of sorted keys.
  __device__ __forceinline__ bool sees_token(int token, int half) const {
    bool sees = token < limit[half];
    if constexpr (S.rules.windowed) sees = sees && token >= first[half];
    if constexpr (kBits) {
      u32 word = seen[half][0];
#pragma unroll
      for (int i = 1; i < kWords; ++i) word = token >= 32 * i ? seen[half][i] : word;
      sees = sees && word >> token % 32 & 1;
    }
    if constexpr (S.rules.mask_mod) sees = sees && user.sees(half, first_key + token);
    return sees;
  }
};
