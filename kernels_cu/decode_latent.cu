// Attention to a latent cache in the absorbed form: all query heads share one K, 512 channels of 8
// bits and 64 of 16, and its first 512 channels are V.
//
// Every CTA has an equal share of the blocks of all sequences and tiles of rows (partition.cuh).
// Eight warps compute, so that each has the most registers; the first one starts copies as well.
// Per block of 128 tokens:
//   latent_scores  S = Q K^T, integers and then floats
//   softmax.step   S -> P against the maximum of the block
//   values.add     O += P V, from the same codes
// At the end of a head's share O is stored, whole or as a part (latent_output.cuh). Products are
// the bound where 64 rows or more share the tokens.
#include "kv/latent_copies.cuh"
#include "kv/latent_output.cuh"
#include "kv/latent_queries.cuh"

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
#pragma unroll(S.warpgroups ? 1 : S.stages)
    for (int stage = 0; stage < S.stages; ++stage) copies.next(p, partition, ring);
    copies.is_ahead = true;
    if constexpr (S.warpgroups) storage.copy_place = copies;
  }
  Turn<S.stages> turn;
  Arrivals own;
  Arrivals& arrivals = latent_arrivals<S>(storage, own);
  for_heads(partition, [&](const HeadShare& head) {
    LatentSoftmax<S> softmax;
    softmax.start(p, head.at, warp);
    LatentValues<S> values;
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
        const auto settle = [&] { values.settle(storage, warp); };
        // Into the place of the block before, which all warps are about to have left.
        const auto copy = [&] {
          if (!copies_blocks) return;
          __syncwarp();
          LatentCopies<S> next(storage.copy_place);
          __syncwarp();
          if (!next.is_ahead) next.next(p, partition, ring);
          next.is_ahead = false;
          storage.copy_place = next;
        };
        latent_scores<S>(s, storage, units, tokens, warp, softmax.factor, settle, copy);
      } else {
        latent_scores<S>(s, storage, tokens, warp);
      }
      const int first = block * kKvBlock;
      if (first + kKvBlock <= all_see) {
        softmax.template step<false>(s, storage, tokens, first, warp);
      } else {
        softmax.template step<true>(s, storage, tokens, first, warp);
      }
      values.add(storage, units, softmax, warp);
      __syncwarp();
      if (warp.lane == 0) ptx::mbarrier_arrive(ring.empty + 8 * turn.buffer);
      if (!S.warpgroups && copies_blocks) copies.next(p, partition, ring);
      turn.next();
    }
    values.settle(storage, warp);
    store_latent_rows<S>(p, storage, softmax, values.o, head, warp);
    meet_all();  // also before what `storage` holds of this head is overwritten
    if (!p.parts && (!S.warpgroups || threadIdx.x == 0)) {
      arrivals.template arrive<kLatentShare<S>>(p, partition, head);
    }
  });
  if (!p.parts) merge_latent_parts<S>(p, storage, partition, arrivals);
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
    if constexpr (S.warpgroups) storage.arrivals = {};
  }
  __syncthreads();
  const Partition<kLatentShare<S>> partition(p);
  const bool has_share = partition.begin(blockIdx.x) < partition.begin(blockIdx.x + 1);
  if (threadIdx.x < kWarpSize) store_empty<kLatentShare<S>>(p);
  if (has_share) attend_latent_share<S>(p, storage, partition, ring);
}
