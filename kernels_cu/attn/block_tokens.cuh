// Which token of a block of keys is in each of a lane's columns.
#pragma once
#include "attn/mask.cuh"
#include "ptx/registers.cuh"

template <auto S, bool Sorted = Mask<S>::kSorted>
struct BlockTokens {
  static constexpr float kOffset = 0.0f;
  __device__ __forceinline__ BlockTokens(const u8*, bool, int, int) {}
  __device__ __forceinline__ void come_to(int) {}
  __device__ __forceinline__ int number(int tile, int e) const { return 8 * tile + e; }
  // The number plus kOffset.
  __device__ __forceinline__ float shifted(int tile, int e) const {
    return static_cast<float>(8 * tile + e);
  }
};

// Of sorted keys: those of each two tiles are a word. Without an order tokens are in their columns.
template <auto S>
struct BlockTokens<S, true> {
  static_assert(S.block_kv == kSortedBlock && kSortedBlock <= 128);
  // A number below 128 in the upper bits of a fraction makes a float from 128 on.
  static constexpr float kOffset = 128.0f;
  const u32* words;
  u32 columns;
  u32 word;
  u32 upper;  // of such a float; hidden, so that of what permutes bytes the selector is immediate
  bool ordered;

  __device__ __forceinline__ BlockTokens(const u8* order, bool ordered, int seqlen_kv,
                                         int lane)
      : words(reinterpret_cast<const u32*>(order + lane % 4 * kLanePlaces)),
        columns(0x09080100u + lane % 4 * 0x02020202u),
        upper(0x43000000u | ptx::hidden_zero(seqlen_kv)),
        ordered(ordered) {}

  __device__ __forceinline__ void come_to(int tile) {
    if (tile % 2 == 0) word = ordered ? words[tile / 2] : columns + tile / 2 * 0x10101010u;
  }
  __device__ __forceinline__ int number(int tile, int e) const {
    return word >> (tile % 2 * 16 + e * 8) & 255;
  }
  __device__ __forceinline__ float shifted(int tile, int e) const {
    const u32 byte = tile % 2 * 2 + e;
    return __uint_as_float(__byte_perm(word, upper, 0x7044u | byte << 8));
  }
};
