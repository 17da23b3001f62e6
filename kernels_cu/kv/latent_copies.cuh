// Copies of a latent cache's blocks into shared memory, which one of the computing warps starts.
#pragma once
#include "kv/latent_storage.cuh"
#include "kv/unit_copies.cuh"

// Copies one block after the other of a CTA's share: whole units that hold something. By one warp.
template <LatentDecodeSpec S>
struct LatentCopies : LatentCopyPlace<S> {
  using Place = LatentCopyPlace<S>;
  using Place::at, Place::left, Place::turn;

  __device__ __forceinline__ explicit LatentCopies(const Partition<kLatentShare<S>>& partition) {
    const int begin = partition.begin(blockIdx.x);
    left = partition.begin(blockIdx.x + 1) - begin;
    at = partition.at(begin);
  }
  __device__ __forceinline__ explicit LatentCopies(const Place& place) : Place(place) {}

  // The next block, if there is one, as soon as its place has been read.
  __device__ __forceinline__ void next(const DecodeParams& p,
                                       const Partition<kLatentShare<S>>& partition,
                                       const UnitRing& ring) {
    if (left == 0) return;
    const int lane = threadIdx.x % kWarpSize;
    const int first = at.block * kLatentBlockUnits;
    const int count =
        min_of(ceil_div(at.length, kLatentUnitTokens) - first, kLatentBlockUnits);
    const u8* from = latent_unit(p.store, at.sequence, first + min_of(lane, count - 1));
    const u32 to = ring.units + turn.buffer * kLatentBlockUnits * kLatentUnitBytes;
    const u32 full = ring.full + 8 * turn.buffer;
    turn.wait_empty(ring.empty);
    if constexpr (kBulkCopies) {
      if (lane == 0) ptx::mbarrier_expect(full, count * kLatentUnitBytes);
      __syncwarp();
      if (lane < count) {
        ptx::bulk_copy(to + lane * kLatentUnitBytes, from, kLatentUnitBytes, full);
      }
    } else {
      for (int unit = 0; unit < count; ++unit) {
        const u64 address = __shfl_sync(0xffffffffu, reinterpret_cast<u64>(from), unit);
        const u8* of_unit = reinterpret_cast<const u8*>(address);
#pragma unroll 4
        for (int byte = 16 * lane; byte < kLatentUnitBytes; byte += 16 * kWarpSize) {
          ptx::cp_async_16(to + unit * kLatentUnitBytes + byte, of_unit + byte);
        }
      }
      ptx::mbarrier_arrive_on_copies(full);
    }
    turn.next();
    if (--left && ++at.block == at.blocks) partition.next_head(at);
  }
};
