// How an append begins and ends for all sequences together: either all of them have room, or none
// is written to; lengths grow when nobody reads them any more.
#pragma once
#include "kv/fine_units.cuh"
#include "kv/packed_tokens.cuh"
#include "ptx/memory.cuh"

// Tokens that are appended to a sequence, negative if that makes no sense. Params are AppendParams
// or OffsetParams. `Packed` tokens lie end to end.
template <bool Packed, class Params>
__device__ __forceinline__ int count_of(const Params& p, int sequence) {
  if constexpr (Packed) {
    return span_of(p, sequence).count;
  } else {
    return p.counts ? p.counts[sequence] : p.seqlen;
  }
}

// Whether a sequence, of those that the thread looks at, cannot take its tokens.
template <int Threads, bool Packed, class Params>
__device__ __forceinline__ bool lacks_room(const Params& p) {
  bool lacks = false;
  for (int b = threadIdx.x; b < p.store.batch; b += Threads) {
    const int count = count_of<Packed>(p, b);
    lacks |= count < 0 || count > p.seqlen || p.store.lengths[b] > p.limits[b] - count;
  }
  return lacks;
}

// Counts the CTAs that have read the lengths; the last one lets them grow. By one warp of each CTA.
template <bool Packed>
struct AppendEnd {
  u32 before = 0;  // CTAs that were there before; of lane 0
  // What becomes of the lane's sequence, of the first 32, at hand when it is wanted.
  i32 grown = 0;
  i32 coarse = 0;

  __device__ __forceinline__ explicit AppendEnd(const AppendParams& p) {
    const int lane = threadIdx.x % kWarpSize;
    if (lane < p.store.batch) read(p, lane);
  }

  // After all threads of the CTA have read the lengths. Nothing waits for the answer yet.
  __device__ __forceinline__ void arrive(const AppendParams& p) {
    if (threadIdx.x % kWarpSize == 0) before = ptx::count_arrival(p.arrivals);
  }

  __device__ __forceinline__ void finish(const AppendParams& p, bool refused) const {
    const int lane = threadIdx.x % kWarpSize;
    if (__shfl_sync(0xffffffffu, before, 0) != gridDim.x - 1) return;
    if (lane == 0) {
      *p.arrivals = 0;
      if (refused) *p.refused = 1;
    }
    if (refused) return;
    AppendEnd of = *this;
    if (lane < p.store.batch) of.write(p, lane);
    for (int b = lane + kWarpSize; b < p.store.batch; b += kWarpSize) {
      of.read(p, b);
      of.write(p, b);
    }
  }

 private:
  __device__ __forceinline__ void read(const AppendParams& p, int b) {
    const int length = p.store.lengths[b];
    grown = length + count_of<Packed>(p, b);
    if (p.store.coarse) coarse = coarse_after(p.store, p.store.coarse[b], length, grown);
  }
  __device__ __forceinline__ void write(const AppendParams& p, int b) const {
    p.store.lengths[b] = grown;
    if (p.store.coarse) p.store.coarse[b] = coarse;
  }
};
