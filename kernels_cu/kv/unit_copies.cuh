// The warp that copies: it brings the units of one block after the other into shared memory.
#pragma once
#include "kv/fine_units.cuh"
#include "kv/head_share.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/cp_async.cuh"
#include "tile/turns.cuh"

// Where the stages are, and their barriers.
struct UnitRing {
  u32 units;
  u32 full;
  u32 empty;
};

// From sm_90 on a unit is one instruction of one lane; before, all lanes copy 16 bytes at a time.
#if __CUDA_ARCH__ >= 900
constexpr bool kBulkCopies = true;
#else
constexpr bool kBulkCopies = false;
#endif

template <DecodeSpec S>
__device__ __forceinline__ void init_unit_ring(const UnitRing& ring) {
  for (int stage = 0; stage < S.stages; ++stage) {
    ptx::mbarrier_init(ring.full + 8 * stage, kBulkCopies ? 1 : kWarpSize);
    ptx::mbarrier_init(ring.empty + 8 * stage, kComputingWarps);
  }
}

// What is copied of a block: units that hold something, and something that a row sees. What is in
// the place of others is not looked at.
template <DecodeSpec S>
struct BlockUnits {
  int first;      // unit of the block's first place
  int begin = 0;  // places that are copied
  int end;

  __device__ __forceinline__ BlockUnits(const Partition<S>& partition, int length, int block)
      : first((partition.hidden_blocks(length) + block) * kBlockUnits),
        end(min_of(ceil_div(length, kUnitTokens) - first, kBlockUnits)) {
    if constexpr (S.window) begin = max_of(partition.hidden(length) / kUnitTokens - first, 0);
  }

  // A bit for each place.
  __device__ __forceinline__ u32 bits() const { return (1u << end) - (1u << begin); }

  // Of those the ones that have lower halves of nested codes, which are copied to the next stage.
  __device__ __forceinline__ u32 fine(const KvStore& store, int coarse) const {
    if constexpr (!S.nested) return 0;
    return bits() & fine_bits(store, coarse, first);
  }
};

// Copies units that have a bit to the stage that it is the turn of. `from` is where the lane's unit
// begins.
template <DecodeSpec S>
__device__ __forceinline__ void copy_to_stage(const UnitRing& ring, Turn<S.stages>& turn,
                                              const u8* from, u32 bits) {
  constexpr int kBytes = Unit<S>::kBytes;
  constexpr int kUsed = Unit<S>::kUsed;
  const int lane = threadIdx.x % kWarpSize;
  const u32 to = ring.units + turn.buffer * kBlockUnits * kBytes;
  const u32 full = ring.full + 8 * turn.buffer;
  turn.wait_empty(ring.empty);
  if constexpr (kBulkCopies) {
    if (lane == 0) ptx::mbarrier_expect(full, __popc(bits) * kUsed);
    __syncwarp();
    if (bits >> lane & 1) ptx::bulk_copy(to + lane * kBytes, from, kUsed, full);
  } else {
    for (u32 left = bits; left; left &= left - 1) {
      const int unit = __ffs(left) - 1;
      const u64 address = __shfl_sync(0xffffffffu, reinterpret_cast<u64>(from), unit);
      const u8* of_unit = reinterpret_cast<const u8*>(address);
#pragma unroll
      for (int byte = 0; byte < kUsed; byte += 16 * kWarpSize) {
        const int mine = byte + 16 * lane;
        if (mine < kUsed) ptx::cp_async_16(to + unit * kBytes + mine, of_unit + mine);
      }
    }
    ptx::mbarrier_arrive_on_copies(full);
  }
  turn.next();
}

// The computing warps wait for every block, so no copy outlives the CTA.
template <DecodeSpec S>
__device__ __forceinline__ void copy_units(const DecodeParams& p, const Partition<S>& partition,
                                           const UnitRing& ring) {
  constexpr int kBytes = Unit<S>::kBytes;
  const int lane = threadIdx.x % kWarpSize;
  Turn<S.stages> turn;
  for_heads(partition, [&](const HeadShare& head) {
    const int kv_head = divided(head.at.head, p.by_row_tiles);
    // Pages are looked up a block ahead.
    const auto page_in = [&](int block) {
      const int all_units = ceil_div(head.at.length, kUnitTokens);
      const int first = BlockUnits<S>(partition, head.at.length, block).first;
      return page_of(p.store, head.at.sequence, min_of(first + lane, all_units - 1));
    };
    int page = page_in(head.at.block);
    const int coarse = S.nested ? __ldg(p.store.coarse + head.at.sequence) : 0;
#pragma unroll 1
    for (int block = head.at.block; block < head.last; ++block) {
      const BlockUnits<S> units(partition, head.at.length, block);
      const u8* from = unit_address(p.store, page, kv_head, units.first + lane, kBytes);
      page = page_in(block + 1);
      copy_to_stage<S>(ring, turn, from, units.bits());
      if (const u32 fine = units.fine(p.store, coarse)) {
        const int of_batch = head.at.sequence * p.store.num_kv_heads + kv_head;
        copy_to_stage<S>(ring, turn, fine_address(p.store, of_batch, units.first + lane, kBytes),
                         fine);
      }
    }
  });
}
