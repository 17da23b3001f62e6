// How fast memory can be read, or copied: nothing is done with what is read. CTAs take turns.
#include "rate.cuh"

template <MemoryRateSpec S>
__device__ __forceinline__ void memory_rate(const MemoryRateParams& p) {
  constexpr i64 kTurn = static_cast<i64>(S.num_threads) * S.chunks;
  const uint4* from = static_cast<const uint4*>(p.from);
  uint4* to = static_cast<uint4*>(p.to);
  u32 words = 0;
  for (i64 turn = blockIdx.x * kTurn; turn < p.chunks; turn += gridDim.x * kTurn) {
    const i64 first = turn + threadIdx.x;
    uint4 chunk[S.chunks];
#pragma unroll
    for (int i = 0; i < S.chunks; ++i) chunk[i] = __ldcs(from + first + i * S.num_threads);
#pragma unroll
    for (int i = 0; i < S.chunks; ++i) {
      if constexpr (S.writes) {
        __stcs(to + first + i * S.num_threads, chunk[i]);
      } else {
        words ^= chunk[i].x ^ chunk[i].y ^ chunk[i].z ^ chunk[i].w;
      }
    }
  }
  if constexpr (!S.writes) {
    static_cast<u32*>(p.to)[blockIdx.x * S.num_threads + threadIdx.x] = words;
  }
}
