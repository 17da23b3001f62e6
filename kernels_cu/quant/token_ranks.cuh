// The order of sorted keys (layout.cuh) of a block, as reference/sorting.py has it.
#pragma once
#include "layout.cuh"
#include "ptx/registers.cuh"
#include "quant/codes.cuh"
#include "quant/sort_keys.cuh"

// In shared memory: what is known of the 128 tokens of a block, and where each comes to lie.
struct SortedTokens {
  u32 k_amax[kSortedBlock];  // bits of largest magnitudes, by tokens
  u32 v_amax[kSortedBlock];
  alignas(16) u8 token[kSortedBlock];  // by places
  u8 place[kSortedBlock];              // by tokens
  f32 k_section_amax[kPlaceScales];  // largest magnitudes of what has one scale
  f32 v_section_amax[kPlaceScales];
  // What makes codes of them: 0 past the end.
  f32 k_factor[kSortedBlock];              // by tokens
  alignas(16) f32 v_factor[kSortedBlock];  // by places
};

// Of a token past the end, which is the largest of all.
constexpr u32 kPastEnd = 0x7fffffffu;

// Sorts like magnitudes, then like tokens; the 30th bit and the one above are free.
__device__ __forceinline__ u32 sort_key(u32 amax, int token) {
  return (amax >> 1 & ~(kSortedBlock - 1u)) | token;
}

// The section of a rank by V; the place of the i-th token of a section.
__device__ __forceinline__ u32 section_of_rank(u32 rank) {
  return rank < 8 ? 0 : rank < 56 ? 1 : rank < 112 ? 2 : 3;
}
template <int Section>
__device__ __forceinline__ u32 place_in_section(u32 i) {
  constexpr u32 kFirst[] = {0, 2, 14, 28, kLanePlaces};
  constexpr u32 kWidth = kFirst[Section + 1] - kFirst[Section];
  return i / kWidth * kLanePlaces + kFirst[Section] + i % kWidth;
}

// Of a warp that has tokens in the order of V, four a lane: places of those in the first section,
// the 8 of its first two lanes, and in the last, the 16 of its last four. Of the 8, pairs of
// neighbours come to lanes by the larger of their keys of K; of the 16, each 8 by their own.
__device__ __forceinline__ void place_ends(u32 (&place)[4], const u32 (&k_key)[4], u32 lane) {
  u32 other[4];  // the rest of the 8
#pragma unroll
  for (int i = 0; i < 4; ++i) other[i] = __shfl_xor_sync(0xffffffffu, k_key[i], 1);
  const u32 mine[] = {max_of(k_key[0], k_key[1]), max_of(k_key[2], k_key[3])};
  const u32 others[] = {max_of(other[0], other[1]), max_of(other[2], other[3])};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32 pair = mine[i / 2];
    const u32 pairs_before =
        (mine[1 - i / 2] < pair) + (others[0] < pair) + (others[1] < pair);
    u32 before = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) before += (k_key[j] < k_key[i]) + (other[j] < k_key[i]);
    place[i] = lane < 2 ? place_in_section<0>(2 * pairs_before + i % 2)
                        : place_in_section<3>(lane % 4 / 2 * 8 + before);
  }
}

// From the largest magnitudes in `sorted` to the places of tokens, by all of the CTA: a warp puts
// tokens in the order of V, another in that of K.
__device__ __forceinline__ void sort_tokens(SortedTokens& sorted) {
  constexpr u32 kNoPlace = kSortedBlock;  // and the number of a section
  // The compiler would else keep from block to block what follows from the thread.
  const u32 thread = ptx::opaque(threadIdx.x);
  const u32 warp = thread / kWarpSize;
  const u32 lane = thread % kWarpSize;
  const auto put = [&](u32 token, u32 place) {
    sorted.place[token] = place;
    sorted.token[place] = token;
  };
  u32 key[4];
  if (warp < 2) {
    const u32* amax = warp == 0 ? sorted.v_amax : sorted.k_amax;
#pragma unroll
    for (int i = 0; i < 4; ++i) key[i] = sort_key(amax[4 * lane + i], 4 * lane + i);
    sort_keys(key, lane);
  }
  if (warp == 0) {
    u32 k_key[4], place[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 token = key[i] % kSortedBlock;
      k_key[i] = sort_key(sorted.k_amax[token], token);
    }
    place_ends(place, k_key, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 token = key[i] % kSortedBlock;
      const u32 section = section_of_rank(4 * lane + i);
      if (section == 0 || section == 3) {
        put(token, place[i]);
      } else {
        sorted.place[token] = kNoPlace + section;
      }
    }
  }
  __syncthreads();
  if (warp == 1) {
    // How many tokens of section 1 come before, and in the upper half of section 2.
    u32 section[4], before[4], count = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      section[i] = sorted.place[key[i] % kSortedBlock] - kNoPlace;
      before[i] = count;
      count += section[i] == 1 ? 1 : section[i] == 2 ? 1 << 16 : 0;
    }
    u32 sum = count;
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const u32 other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 rank = sum - count + before[i];
      const u32 token = key[i] % kSortedBlock;
      if (section[i] == 1) put(token, place_in_section<1>(rank & 0xffff));
      if (section[i] == 2) put(token, place_in_section<2>(rank >> 16));
    }
  }
}

// Takes an order as it is: that of other operands, or if it is null that of columns. Of one that is
// none, no token or place lies outside.
template <int Threads>
__device__ __forceinline__ void take_order(SortedTokens& sorted, const u8* order) {
  for (int place = ptx::opaque(threadIdx.x); place < kSortedBlock; place += Threads) {
    const int token = order ? order[place] % kSortedBlock : column_of(place);
    sorted.place[token] = place;
    sorted.token[place] = token;
  }
}

// The largest magnitude of the tokens of a section, by a warp whose lanes have the places of one
// lane of products; 0 if it has none. NaN wins.
__device__ __forceinline__ float section_amax(bool exists, u32 amax, int section) {
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < kSections; ++i) {
    const bool counts = exists && section == i;
    const u32 x = __reduce_max_sync(0xffffffffu, counts ? amax : 0u);
    if (section == i) largest = x;
  }
  return __uint_as_float(largest);
}
