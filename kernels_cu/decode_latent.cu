// Attention to a latent cache in the absorbed form: all query heads share one K, 512 channels of 8
// bits and 64 of 16, and its first 512 channels are V.
//
// Every CTA has an equal share of the blocks of all sequences and tiles of rows (partition.cuh).
// Eight warps compute, so that each has the most registers; one of them starts copies as well.
// Per block of 128 tokens:
//   latent_scores  S = Q K^T, integers and then floats
//   softmax.step   S -> P against the maximum of the block
//   values.add     O += P V, from the same codes
// At the end of a head's share O is stored, whole or as a part (latent_output.cuh). Products are
// the bound where 64 rows or more share the tokens.
#include "kv/latent_heads.cuh"
#include "kv/latent_output.cuh"
#include "kv/latent_queries.cuh"

// A head's blocks of a CTA. `copy` starts the copies of one more.
template <LatentDecodeSpec S, class Copy>
__device__ __forceinline__ void attend_latent_head(const DecodeParams& p,
                                                   LatentStorage<S>& storage,
                                                   const UnitRing& ring, const HeadShare& head,
                                                   Turn<S.stages>& turn, const LatentWarp<S>& warp,
                                                   Copy copy) {
  using H = LatentShape<S>;
  LatentSoftmax<S> softmax;
  softmax.start(p, head.at, warp);
  LatentValues<S> values;
  prepare_latent_queries<S>(p, storage, head.at);
  const int length = head.at.length;
  const int all_see = p.is_causal ? length - p.seqlen_q + 1 : length;  // of the tokens, every row
  const int last = head.last;
#pragma unroll 1
  for (int block = head.at.block; block < last; ++block) {
    const auto& units = storage.units[turn.buffer];
    const LatentTokens<S> tokens(units, warp);
    turn.wait_full(ring.full);
    typename H::Scores s = {};
    if constexpr (S.warpgroups) {
      const auto settle = [&] { values.settle(storage, warp); };
      latent_scores<S>(s, storage, units, tokens, warp, softmax.factor, settle);
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
    copy();
    turn.next();
  }
  values.settle(storage, warp);
  store_latent_rows<S>(p, storage, softmax, values.o, head, warp);
}

template <LatentDecodeSpec S>
  requires(!S.warpgroups)
__device__ __forceinline__ void attend_latent_share(const DecodeParams& p,
                                                    LatentStorage<S>& storage,
                                                    const UnitRing& ring) {
  const Partition<kLatentShare<S>> partition(p);
  const bool has_share = partition.begin(blockIdx.x) < partition.begin(blockIdx.x + 1);
  if (threadIdx.x < kWarpSize) store_empty<kLatentShare<S>>(p);
  if (!has_share) return;
  const LatentWarp<S> warp;
  const bool copies_blocks = threadIdx.x < kWarpSize;
  LatentCopies<S> copies(partition);
  if (copies_blocks) {
    for (int stage = 0; stage < S.stages; ++stage) copies.next(p, partition, ring);
  }
  const auto copy = [&] {
    if (copies_blocks) copies.next(p, partition, ring);
  };
  Turn<S.stages> turn;
  Arrivals arrivals;
  for_heads(partition, [&](const HeadShare& head) {
    attend_latent_head<S>(p, storage, ring, head, turn, warp, copy);
    meet_all();  // also before what `storage` holds of this head is overwritten
    if (!p.parts) arrivals.template arrive<kLatentShare<S>>(p, partition, head);
  });
  if (!p.parts) merge_latent_parts<S>(p, storage, partition, arrivals);
}

template <LatentDecodeSpec S>
  requires(S.warpgroups)
__device__ __forceinline__ void attend_latent_share(const DecodeParams& p,
                                                    LatentStorage<S>& storage,
                                                    const UnitRing& ring) {
  if (threadIdx.x < kWarpSize) {
    begin_latent_share<S>(p, storage, ring);
    store_empty<kLatentShare<S>>(p);
  }
  meet_all();
  const LatentWarp<S> warp;
  // By a warp of the second warpgroup: the first warp of the first has heads to move on.
  const auto copy = [&] {
    if (warp.share == 1 && warp.first_tile == 0) copy_next_block<S>(p, storage, ring);
  };
  Turn<S.stages> turn;
  for_group_heads<S>(storage, [&](const HeadShare& head) {
    attend_latent_head<S>(p, storage, ring, head, turn, warp, copy);
    meet_all();
    if (!p.parts && threadIdx.x == 0) {
      storage.arrivals.template arrive<kLatentShare<S>>(p, storage.partition, head);
    }
  });
  if (!p.parts) merge_latent_parts<S>(p, storage, storage.partition, storage.arrivals);
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
  attend_latent_share<S>(p, storage, ring);
}
