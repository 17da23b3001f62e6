// The order of sorted keys (layout.cuh) of a block, as reference/sorting.py has it.
#pragma once
#include "layout.cuh"
#include "quant/codes.cuh"

// In shared memory: what is known of the 128 tokens of a block, and where each comes to lie.
struct SortedTokens {
  u32 k_amax[kSortedBlock];  // bits of largest magnitudes, by tokens
  u32 v_amax[kSortedBlock];
  alignas(16) u32 key[2][kSortedBlock];
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

// How many of a block's keys are smaller, counted by two neighbouring threads.
__device__ __forceinline__ int rank_of(const u32 (&keys)[kSortedBlock], u32 key, int part) {
  const uint4* four = reinterpret_cast<const uint4*>(keys) + part * (kSortedBlock / 8);
  int count = 0;
#pragma unroll 8
  for (int i = 0; i < kSortedBlock / 8; ++i) {
    const uint4 x = four[i];
    count += (x.x < key) + (x.y < key) + (x.z < key) + (x.w < key);
  }
  return count + __shfl_xor_sync(0xffffffffu, count, 1);
}

// The section of a rank by V, and the place of a rank in the order in which places are filled.
__device__ __forceinline__ int section_of_rank(int rank) {
  return rank < 8 ? 0 : rank < 64 ? 1 : rank < 120 ? 2 : 3;
}
__device__ __forceinline__ int place_of_rank(int rank) {
  const int section = section_of_rank(rank);
  const int first = section == 0 ? 0 : section == 1 ? 8 : section == 2 ? 64 : 120;
  const int width = section % 3 == 0 ? 2 : 14;
  const int of_lane = section == 0 ? 0 : section == 1 ? 2 : section == 2 ? 16 : 30;
  return (rank - first) / width * kLanePlaces + of_lane + (rank - first) % width;
}

// From the largest magnitudes in `sorted` to the places of tokens. All threads of the CTA call it.
template <int Threads>
__device__ __forceinline__ void sort_tokens(SortedTokens& sorted) {
  static_assert(Threads % kWarpSize == 0);
  const int part = threadIdx.x % 2;
  for (int token = threadIdx.x / 2; token < kSortedBlock; token += Threads / 2) {
    if (part == 0) sorted.key[0][token] = sort_key(sorted.v_amax[token], token);
  }
  __syncthreads();
  for (int token = threadIdx.x / 2; token < kSortedBlock; token += Threads / 2) {
    const u32 by_v = sorted.key[0][token];
    const u32 section = section_of_rank(rank_of(sorted.key[0], by_v, part));
    const u32 within = section % 3 == 0 ? by_v : sort_key(sorted.k_amax[token], token);
    if (part == 0) sorted.key[1][token] = section << 30 | within;
  }
  __syncthreads();
  for (int token = threadIdx.x / 2; token < kSortedBlock; token += Threads / 2) {
    const int place = place_of_rank(rank_of(sorted.key[1], sorted.key[1][token], part));
    if (part == 0) {
      sorted.place[token] = place;
      sorted.token[place] = token;
    }
  }
}

// Takes an order as it is: that of other operands, or if it is null that of columns.
template <int Threads>
__device__ __forceinline__ void take_order(SortedTokens& sorted, const u8* order) {
  for (int place = threadIdx.x; place < kSortedBlock; place += Threads) {
    const int token = order ? order[place] : column_of(place);
    sorted.place[token] = place;
    sorted.token[place] = token;
  }
}

// The largest magnitude of the lanes of a warp for which a condition holds; 0 if for none.
__device__ __forceinline__ float amax_where(bool condition, u32 amax) {
  return __uint_as_float(__reduce_max_sync(0xffffffffu, condition ? amax : 0u));
}
