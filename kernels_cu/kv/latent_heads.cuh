// The heads that a CTA has a share of, and who keeps in mind what the next one is. Warpgroups have
// no registers for that: it is in shared memory, where thread 0 moves it on.
#pragma once
#include "kv/latent_copies.cuh"

// Makes the first head, and starts the first copies. By warp 0.
template <LatentDecodeSpec S>
__device__ __forceinline__ void begin_latent_share(const DecodeParams& p,
                                                   LatentStorage<S>& storage,
                                                   const UnitRing& ring) {
  const Partition<kLatentShare<S>> partition(p);
  const int begin = partition.begin(blockIdx.x);
  const int end = partition.begin(blockIdx.x + 1);
  const bool notes = threadIdx.x == 0;
  if (notes) {
    storage.partition = partition;
    storage.arrivals = {};
    storage.has_head = begin < end;
  }
  if (begin == end) return;
  LatentCopies<S> copies(partition);
  if (notes) storage.head = HeadShare(copies.at, begin, end, true);
#pragma unroll 1
  for (int stage = 0; stage < S.stages; ++stage) copies.next(p, partition, ring);
  if (notes) storage.copy_place = copies;
}

// Into the place of a block, as soon as all warps have left it. By one warp.
template <LatentDecodeSpec S>
__device__ __forceinline__ void copy_next_block(const DecodeParams& p, LatentStorage<S>& storage,
                                                const UnitRing& ring) {
  __syncwarp();
  LatentCopies<S> copies(storage.copy_place);
  __syncwarp();
  copies.next(p, storage.partition, ring);
  if (threadIdx.x % kWarpSize == 0) storage.copy_place = copies;
}

// Calls f for each head.
template <LatentDecodeSpec S, class F>
__device__ __forceinline__ void for_group_heads(LatentStorage<S>& storage, F f) {
#pragma unroll 1
  while (storage.has_head) {
    f(storage.head);
    meet_all();
    if (threadIdx.x == 0) {
      BlockCursor at = storage.head.at;
      const int n = storage.head.begin + storage.head.last;
      const int end = storage.partition.begin(blockIdx.x + 1);
      storage.has_head = n < end;
      if (n < end) {
        storage.partition.next_head(at);
        storage.head = HeadShare(at, n, end, false);
      }
    }
    meet_all();
  }
}
