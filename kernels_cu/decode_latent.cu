// Attention to a latent cache in the absorbed form: all query heads share one K, 512 channels of 8
// bits and 64 of 16, and its first 512 channels are V.
//
// Every CTA has an equal share of the blocks of all sequences and tiles of rows (partition.cuh).
// Eight warps compute, so that each has the most registers; the first one starts copies as well.
// Per block of 128 tokens:
//   latent_scores      S = Q K^T, integers and then floats in the same registers
//   softmax.step       S -> P against the maximum of the block
//   add_latent_values  O += P V, from the same codes
// At the end of a head's share O is stored, whole or as a part (latent_output.cuh). Products are
// the bound where 64 rows or more share the tokens.
#include "kv/latent_output.cuh"
#include "kv/latent_queries.cuh"
#include "kv/unit_copies.cuh"

// Copies one block after the other of a CTA's share: whole units that hold something. By one warp.
template <LatentDecodeSpec S>
struct LatentCopies {
  BlockCursor at;
  int left;  // blocks
  Turn<S.stages> turn;

  __device__ __forceinline__ explicit LatentCopies(const Partition<kLatentShare<S>>& partition) {
    const int begin = partition.begin(blockIdx.x);
    left = partition.begin(blockIdx.x + 1) - begin;
    at = partition.at(begin);
  }

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

template <LatentDecodeSpec S>
__device__ __forceinline__ void attend_latent_share(const DecodeParams& p,
                                                    LatentStorage<S>& storage,
                                                    const Partition<kLatentShare<S>>& partition,
                                                    const UnitRing& ring) {
  using H = LatentShape<S>;
  const LatentWarp<S> warp;
  const bool copies_blocks = threadIdx.x < kWarpSize;
  LatentCopies<S> copies(partition);
  if (copies_blocks) {
    for (int stage = 0; stage < S.stages; ++stage) copies.next(p, partition, ring);
  }
  Turn<S.stages> turn;
  Arrivals arrivals;
  for_heads(partition, [&](const HeadShare& head) {
    LatentSoftmax<S> softmax;
    softmax.start(p, head.at, warp);
    typename H::Output o = {};
    prepare_latent_queries<S>(p, storage, head.at);
    const int length = head.at.length;
    const int all_see = p.is_causal ? length - p.seqlen_q + 1 : length;  // of the tokens, every row
#pragma unroll 1
    for (int block = head.at.block; block < head.last; ++block) {
      const auto& units = storage.units[turn.buffer];
      const LatentTokens<S> tokens(units, warp);
      turn.wait_full(ring.full);
      typename H::Scores s = {};
      if constexpr (S.warpgroups) {
        // Into the place of the block before, which all warps are about to have left.
        latent_scores<S>(s, storage, units, tokens, warp, [&] {
          if (copies_blocks && (block > head.at.block || !head.is_first)) {
            copies.next(p, partition, ring);
          }
        });
      } else {
        latent_scores<S>(s, storage, tokens, warp);
      }
      const int first = block * kKvBlock;
      if (first + kKvBlock <= all_see) {
        softmax.template step<false>(s, storage, tokens, first, warp);
      } else {
        softmax.template step<true>(s, storage, tokens, first, warp);
      }
      if (softmax.has_moved(storage, warp)) shrink_output<S>(o, storage, softmax, warp);
      add_latent_values<S>(o, storage, units, softmax, warp);
      __syncwarp();
      if (warp.lane == 0) ptx::mbarrier_arrive(ring.empty + 8 * turn.buffer);
      if (!S.warpgroups && copies_blocks) copies.next(p, partition, ring);
      turn.next();
    }
    store_latent_rows<S>(p, storage, softmax, o, head, warp);
    meet_all();  // also before what `storage` holds of this head is overwritten
    if (!p.parts) arrivals.template arrive<kLatentShare<S>>(p, partition, head);
  });
  merge_latent_parts<S>(p, storage, partition, arrivals);
}

template <LatentDecodeSpec S>
__device__ __forceinline__ void decode_latent(const DecodeParams& p) {
  using Storage = LatentStorage<S>;
  static_assert(sizeof(Storage) == S.smem_bytes, "cuattn/latent/spec.py disagrees");
  static_assert(S.num_threads == kLatentThreads);
  extern __shared__ __align__(128) u8 smem[];
  Storage& storage = *reinterpret_cast<Storage*>(smem);
  const UnitRing ring{ptx::smem_address(storage.units), ptx::smem_address(storage.full),
                      ptx::smem_address(storage.empty)};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S.stages; ++stage) {
      ptx::mbarrier_init(ring.full + 8 * stage, kBulkCopies ? 1 : kWarpSize);
      ptx::mbarrier_init(ring.empty + 8 * stage, kLatentWarps);
    }
    if constexpr (kBulkCopies) ptx::mbarrier_fence_init();
  }
  __syncthreads();
  const Partition<kLatentShare<S>> partition(p);
  const bool has_share = partition.begin(blockIdx.x) < partition.begin(blockIdx.x + 1);
  if (threadIdx.x < kWarpSize) store_empty<kLatentShare<S>>(p);
  if (has_share) attend_latent_share<S>(p, storage, partition, ring);
}
