// The order of sorted keys (layout.cuh) of a block, as reference/sorting.py has it.
#pragma once
#include "layout.cuh"
#include "quant/codes.cuh"

// In shared memory: what is known of the 128 tokens of a block, and where each comes to lie.
struct SortedTokens {
  u32 k_amax[kSortedBlock];  // bits of largest magnitudes, by tokens
  u32 v_amax[kSortedBlock];
  alignas(16) u8 token[kSortedBlock];  // by places
  u8 place[kSortedBlock];              // by tokens
  f32 k_factor[4];
  f32 v_factor[kPlaceScales];
};

// Of a token past the end, which is the largest of all.
constexpr u32 kPastEnd = 0x7fffffffu;

// Sorts like magnitudes, then like tokens; the 30th bit and the one above are free.
__device__ __forceinline__ u32 sort_key(u32 amax, int token) {
  return (amax >> 1 & ~(kSortedBlock - 1u)) | token;
}

// Sorts 128 keys of a warp, of which lane i has those at places 4 i to 4 i + 3: bitonic merging.
__device__ __forceinline__ void sort_keys(u32 (&key)[4]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int size = 2; size <= kSortedBlock; size *= 2) {
#pragma unroll
    for (int step = size / 2; step > 0; step /= 2) {
      if (step >= 4) {
        // The lower of two lanes keeps the smaller keys, where keys are to rise.
        const bool rises = (4 * lane & size) == 0;
        const bool lower = (4 * lane & step) == 0;
#pragma unroll
        for (u32& mine : key) {
          const u32 other = __shfl_xor_sync(0xffffffffu, mine, step / 4);
          mine = rises == lower ? min_of(mine, other) : max_of(mine, other);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & step) continue;
          const bool rises = ((4 * lane + i) & size) == 0;
          const u32 a = key[i], b = key[i + step];
          key[i] = rises ? min_of(a, b) : max_of(a, b);
          key[i + step] = rises ? max_of(a, b) : min_of(a, b);
        }
      }
    }
  }
}

// The section of a rank by V, and the place of a rank in the order in which places are filled.
__device__ __forceinline__ int section_of_rank(int rank) {
  return rank < 8 ? 0 : rank < 56 ? 1 : rank < 112 ? 2 : 3;
}
__device__ __forceinline__ int place_of_rank(int rank) {
  const int section = section_of_rank(rank);
  const int first = section == 0 ? 0 : section == 1 ? 2 : section == 2 ? 14 : 28;  // of a lane
  const int within = rank - 4 * first;
  // Divided by constants only.
  const auto place = [&](int width) {
    return within / width * kLanePlaces + first + within % width;
  };
  return section == 0 ? place(2) : section == 1 ? place(12) : section == 2 ? place(14) : place(4);
}

// From the largest magnitudes in `sorted` to the places of tokens, by the first warp of the CTA.
__device__ __forceinline__ void sort_tokens(SortedTokens& sorted) {
  if (threadIdx.x >= kWarpSize) return;
  u32 key[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = 4 * threadIdx.x + i;
    key[i] = sort_key(sorted.v_amax[token], token);
  }
  sort_keys(key);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32 section = section_of_rank(4 * threadIdx.x + i);
    const int token = key[i] % kSortedBlock;
    if (section % 3 != 0) key[i] = sort_key(sorted.k_amax[token], token);
    key[i] |= section << 30;
  }
  sort_keys(key);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int place = place_of_rank(4 * threadIdx.x + i);
    const int token = key[i] % kSortedBlock;
    sorted.place[token] = place;
    sorted.token[place] = token;
  }
}

// Takes an order as it is: that of other operands, or if it is null that of columns. Of one that is
// none, no token or place lies outside.
template <int Threads>
__device__ __forceinline__ void take_order(SortedTokens& sorted, const u8* order) {
  for (int place = threadIdx.x; place < kSortedBlock; place += Threads) {
    const int token = order ? order[place] % kSortedBlock : column_of(place);
    sorted.place[token] = place;
    sorted.token[place] = token;
  }
}

// The largest magnitude of the lanes of a warp for which a condition holds; 0 if for none.
__device__ __forceinline__ float amax_where(bool condition, u32 amax) {
  return __uint_as_float(__reduce_max_sync(0xffffffffu, condition ? amax : 0u));
}
