// Bitonic merging of the keys of a block of tokens, by one warp.
#pragma once
#include "layout.cuh"
#include "numeric.cuh"

// Sorts 128 keys of a warp, all of them different, of which lane i has those at places 4 i to
// 4 i + 3: bitonic merging.
__device__ __forceinline__ void sort_keys(u32 (&key)[4], int lane) {
  u32 falls[4] = {};  // all bits set where keys are to fall: they rise when they are inverted
#pragma unroll
  for (int size = 2; size <= kSortedBlock; size *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 before = falls[i];
      falls[i] = size < kSortedBlock && (4 * lane + i & size) ? ~0u : 0u;
      key[i] ^= before ^ falls[i];
    }
#pragma unroll
    for (int step = size / 2; step > 0; step /= 2) {
      if (step >= 4) {
        // The lower of two lanes keeps the smaller keys.
        const bool lower = (4 * lane & step) == 0;
#pragma unroll
        for (u32& mine : key) {
          const u32 other = __shfl_xor_sync(0xffffffffu, mine, step / 4);
          mine = (mine < other) == lower ? mine : other;
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & step) continue;
          const u32 a = key[i], b = key[i + step];
          key[i] = min_of(a, b);
          key[i + step] = max_of(a, b);
        }
      }
    }
  }
}
