// LeanAttention's partition (arXiv 2405.10480, section 4): the blocks of all heads in one list, of
// which every CTA has an equal share, whatever the batch and the lengths. It is worked out from the
// lengths on the device, so that a captured graph follows them.
#pragma once
#include "kv/block_cursor.cuh"
#include "ptx/reduce.cuh"

// Blocks of nested codes that have lower halves take about twice as long; those are a head's newest
// ones, but for its first. So an empty place is behind its blocks for each of them. And where every
// head may have as many CTAs as any other, places ahead of its blocks make its last share a full
// one: no CTA has two heads. reference/partition.py has the same.
template <DecodeSpec S>
struct Partition<S, false> : HeadBlocks<S> {
  using Blocks = HeadBlocks<S>;
  const i32* lengths;
  int batch;
  int heads;    // of a sequence
  int total;    // places in the list
  int share;    // of a CTA; the last one may have fewer
  int scanned;  // places of a head of the sequences up to the lane's number
  int recent;   // of S.nested: units at a sequence's end that have lower halves
  int granule;  // likewise: what places of a head are a multiple of

  // By whole warps.
  __device__ __forceinline__ explicit Partition(const DecodeParams& p)
      : Blocks(p),
        lengths(p.store.lengths),
        batch(p.store.batch),
        heads(p.store.num_kv_heads * p.row_tiles) {
    if constexpr (S.nested) {
      recent = p.store.recent_units;
      granule = 1;
    }
    count_places();
    share_among(gridDim.x);
    if constexpr (S.nested) give_heads_shares();
    scanned = ptx::sum_up_to_lane(places_of(threadIdx.x % kWarpSize));
  }

  // Rounded up by a sixteenth at most, so that shares end where heads do if their lengths are
  // powers of two: a head that is cut has to be merged.
  __device__ __forceinline__ void share_among(u32 ctas) {
    share = ceil_div<u32>(total, ctas);
    if (share >= kWholes) {
      const int multiple = 1 << (31 - __clz(share / kWholes));
      share = share + multiple - 1 & -multiple;
    }
  }

  __device__ __forceinline__ int begin(int cta) const { return min_of(cta * share, total); }
  __device__ __forceinline__ bool has_share(int cta) const { return begin(cta) < begin(cta + 1); }

  // The CTA that has a block.
  __device__ __forceinline__ int owner(int index) const { return quotient(index, share); }

  // The block at a place in the list, below `total`: one that is none if the place is empty. By
  // whole warps.
  __device__ __forceinline__ BlockCursor at(int index) const {
    const int lane = threadIdx.x % kWarpSize;
    int before = 0;  // blocks of the sequences before
    for (int sequence = 0;; sequence += kWarpSize) {
      const int up_to =
          sequence == 0 ? scanned : ptx::sum_up_to_lane(places_of(sequence + lane));
      const int end = before + heads * up_to;
      const u32 beyond = __ballot_sync(0xffffffffu, end > index);
      if (beyond) {
        const int found = __ffs(beyond) - 1;
        BlockCursor at;
        at.sequence = sequence + found;
        enter(at);
        const int inside = index - __shfl_sync(0xffffffffu, end, found) + heads * at.places();
        at.head = quotient(inside, at.places());
        at.block = inside - at.head * at.places() - at.ahead;
        return at;
      }
      before = __shfl_sync(0xffffffffu, end, kWarpSize - 1);
    }
  }

  // To the first place of the next head; there has to be one.
  __device__ __forceinline__ void next_head(BlockCursor& at) const {
    at.block = -at.ahead;
    if (++at.head < heads) return;
    at.head = 0;
    do {
      ++at.sequence;
      enter(at);
    } while (at.blocks == 0);
    at.block = -at.ahead;
  }

  // Makes what a length says of a head.
  __device__ __forceinline__ void count(BlockCursor& at, int length) const {
    at.length = length;
    at.blocks = Blocks::blocks_in(length);
    at.ahead = 0;
    at.behind = 0;
    if constexpr (S.nested) {
      const int first_recent = max_of(ceil_div(length, kUnitTokens) - recent, 0) / kBlockUnits;
      at.behind = min_of(ceil_div(length, kKvBlock) - first_recent, at.blocks);
      if (granule > 1) {
        const int shares = ceil_div<u32>(at.places(), granule);
        at.ahead = shares * granule - at.places();
      }
    }
  }

  // Places of a head of all sequences before one. By whole warps.
  __device__ __forceinline__ int places_before(int sequence) const {
    u32 sum = 0;
#pragma unroll 1
    for (int b = threadIdx.x % kWarpSize; b < sequence; b += kWarpSize) sum += places_of(b);
    return static_cast<int>(__reduce_add_sync(0xffffffffu, sum));
  }

 private:
  static constexpr int kWholes = 16;

  __device__ __forceinline__ void count_places() { total = places_before(batch) * heads; }

  // Lets heads begin where shares do, if these become longer by a sixteenth at most.
  __device__ __forceinline__ void give_heads_shares() {
    const int of_head = quotient(gridDim.x, batch * heads);  // CTAs
    if (recent == 0 || of_head == 0) return;
    int most = 0;
#pragma unroll 1
    for (int b = threadIdx.x % kWarpSize; b < batch; b += kWarpSize) {
      most = max_of(most, places_of(b));
    }
    most = static_cast<int>(__reduce_max_sync(0xffffffffu, static_cast<u32>(most)));
    const int even = ceil_div<u32>(most, of_head);
    if (even > share + share / kWholes) return;
    share = max_of(even, 1);
    granule = share;
    count_places();
  }

  // 0 beyond the batch.
  __device__ __forceinline__ int places_of(int sequence) const {
    if (sequence >= batch) return 0;
    BlockCursor at;
    count(at, __ldg(lengths + sequence));
    return at.places();
  }
  __device__ __forceinline__ void enter(BlockCursor& at) const {
    count(at, __ldg(lengths + at.sequence));
  }
};
