// Few queries against a long quantized KV cache, at the speed at which memory delivers it.
//
// Every CTA has an equal share of the blocks of all heads (partition.cuh), or a part of one head
// (own_parts.cuh). One warp copies them (unit_copies.cuh), four compute: the queries of each head
// (queries.cuh), and per block of 128 tokens
//   unit_scores      S = Q K^T, a quarter of the tokens a warp
//   apply_rules      a shift of first tokens; softcap and ALiBi, if there are any
//   visible.note     a mask and expressions of the caller's, if there are any
//   softmax.step     S -> P against the maximum of the block
//   add_unit_values  O += P V, a quarter of the channels a warp
// At the end of a head, or of the share, O is stored, whole or as a part (partials.cuh). The last
// CTA to arrive at a head makes the whole of its parts (arrivals.cuh, merge.cuh).
#include "kv/arrivals.cuh"
#include "kv/queries.cuh"
#include "kv/score_rules.cuh"
#include "kv/simple_blocks.cuh"
#include "kv/unit_copies.cuh"
#include "kv/unit_scores.cuh"
#include "kv/unit_values.cuh"
#include "ptx/registers.cuh"

// What a lane needs for all blocks, and the compiler would work out again for each of them.
template <DecodeSpec S>
struct LoopPlaces : LanePlaces<S> {
  int warp;
  int lane;
  // Of a matrix of K: lanes 16 to 31 have the second unit's. Of V: every eight have a unit's.
  u32 k;
  u32 v;

  __device__ __forceinline__ LoopPlaces(DecodeStorage<S>& storage, const UnitRing& ring, int warp,
                                        int lane)
      : LanePlaces<S>(storage, warp, lane), warp(warp), lane(lane) {
    k = ptx::opaque(ring.units + (warp * kWarpUnits + lane / 16) * Unit<S>::kBytes +
                    lane % 16 * 16);
    v = ptx::opaque(ring.units + lane / 8 * Unit<S>::kBytes + ValueMatrices<S>::first(warp) +
                    lane % 8 * 16);
  }
};

// What a warp has of the loop's state while it takes one block of a head after the other.
template <DecodeSpec S>
struct HeadLoop {
  const DecodeParams& p;
  const LoopPlaces<S>& at;
  const UnitRing& units;
  const Queries<S>& q;
  BlockSoftmax<S>& softmax;
  typename DecodeShape<S>::Output& o;
  Turn<S.stages>& turn;
  int bare;

  // Takes a block, which is the warp's from token `first` on. `fine` has a bit for each unit that
  // has lower halves of nested codes.
  template <bool Simple>
  __device__ __forceinline__ void take(int first, u32 fine) {
    constexpr int kStage = kBlockUnits * Unit<S>::kBytes;
    // Whether such blocks are few: then they have one way, be there lower halves or not.
    constexpr bool kFew = SimpleBlocks<S>::kAny && !Simple;
    const int stage = turn.buffer * kStage;
    const int warp = at.warp;
    const int lane = at.lane;
    // Lower halves of nested codes are in a stage of their own, the next one.
    Turn<S.stages> last = turn;
    if (fine) {
      last.next();
      last.wait_full(units.full);
    }
    const int lower = (last.buffer - turn.buffer) * kStage;
    const LaneTokens<S> tokens{at.units + stage, at.own_unit + stage, lower,
                               fine >> warp * kWarpUnits & 3};
    const OwnValue<S> own(tokens, lane);
    typename DecodeShape<S>::Scores s;
    unit_scores<S, kFew>(s, q, at.q, tokens, at.k + stage, lane);
    apply_rules<S, Simple>(s, p, q, first, bare, lane);
    if constexpr (kNotes<S>) softmax.visible.note(s, p, q, first, lane);
    own.store(at);
    softmax.template step<Simple>(s, at, tokens, first, lane);
    if (S.nested && (kFew || fine)) {
      add_unit_values<S, S.nested>(o, at, softmax, at.v + stage, lower, fine, warp);
    } else {
      add_unit_values<S, false>(o, at, softmax, at.v + stage, 0, 0, warp);
    }
    __syncwarp();  // all lanes have read the stage
    if (lane == 0) {
      ptx::mbarrier_arrive(units.empty + 8 * turn.buffer);
      if (fine) ptx::mbarrier_arrive(units.empty + 8 * last.buffer);
    }
    turn = last;
    turn.next();
  }
};

template <DecodeSpec S>
__device__ __forceinline__ void attend_share(const DecodeParams& p, DecodeStorage<S>& storage,
                                             const Partition<S>& partition, const UnitRing& units,
                                             int warp) {
  const int lane = ptx::opaque(threadIdx.x) % kWarpSize;
  const LoopPlaces<S> places(storage, units, warp, lane);
  Turn<S.stages> turn;
  Arrivals arrivals;
  for_heads(partition, [&](const HeadShare& head) {
    Queries<S>& q = storage.queries;
    BlockSoftmax<S> softmax;
    softmax.start(p, head.at, lane);
    typename DecodeShape<S>::Output o = {};
    const int bare = bare_tokens(p.store, head.at.sequence);
    const int coarse = S.nested ? __ldg(p.store.coarse + head.at.sequence) : 0;
    make_queries(p, q, head.at, bare, warp);
    const int skipped = partition.hidden_blocks(head.at.length);
    const SimpleBlocks<S> simple(p, head.at.length, coarse, bare);
    HeadLoop<S> loop{p, places, units, q, softmax, o, turn, bare};
    const int last = ptx::opaque(head.last);
#pragma unroll 1
    for (int block = head.at.block; block < last; ++block) {
      const int first = (skipped + block) * kKvBlock + warp * kWarpUnits * kUnitTokens;
      turn.wait_full(units.full);
      if (simple.has(block)) {
        loop.template take<true>(first, 0);
      } else {
        loop.template take<false>(first, BlockUnits<S>(partition, head.at.length, block)
                                             .fine(p.store, coarse));
      }
    }
    store_rows<S>(p, storage, q, softmax, o, head, warp, lane);
    meet();  // also before what `storage` holds of this head is overwritten
    arrivals.arrive(p, partition, head);
  });
  arrivals.merge<S>(p, storage, partition);
}

template <DecodeSpec S>
__device__ __forceinline__ void decode_attention(const DecodeParams& p) {
  using Storage = DecodeStorage<S>;
  static_assert(sizeof(Storage) == S.smem_bytes, "cuattn/kv/spec.py and DecodeStorage disagree");
  static_assert(S.num_threads == kComputingThreads + kWarpSize);
  extern __shared__ __align__(128) u8 smem[];
  Storage& storage = *ptx::held(reinterpret_cast<Storage*>(smem));
  const UnitRing units{ptx::smem_address(storage.units), ptx::smem_address(storage.full),
                       ptx::smem_address(storage.empty)};
  if (threadIdx.x == 0) {
    init_unit_ring<S>(units);
    if constexpr (kBulkCopies) ptx::mbarrier_fence_init();
  }
  const Partition<S> partition(p);  // while that is under way
  __syncthreads();
  const int warp = ptx::warp_number();
  const bool has_share = partition.has_share(blockIdx.x);
  if (warp == kComputingWarps) {
    if (has_share) copy_units<S>(p, partition, units);
    store_empty<S>(p);
  } else {
    if (has_share) attend_share<S>(p, storage, partition, units, warp);
  }
}
