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
  int own;      // places of a head of the sequence of the lane's number
  int scanned;  // the same of all sequences up to that one
  int granule;  // of S.nested: what places of a head are a multiple of

  // By whole warps.
  __device__ __forceinline__ explicit Partition(const DecodeParams& p)
      : Blocks(p),
        lengths(p.store.lengths),
        batch(p.store.batch),
        heads(p.store.num_kv_heads * p.row_tiles) {
    if constexpr (S.nested) granule = 1;
    own = counted(threadIdx.x % kWarpSize);
    count_places();
    share_among(p.by_ctas);
    if constexpr (S.nested) give_heads_shares(p);
    scanned = ptx::sum_up_to_lane(own);
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
          sequence == 0 ? scanned : ptx::sum_up_to_lane(whole(counted(sequence + lane)));
      const int end = before + heads * up_to;
      const u32 beyond = __ballot_sync(0xffffffffu, end > index);
      if (beyond) {
        const int found = __ffs(beyond) - 1;
        const int up_to_last = __shfl_sync(0xffffffffu, up_to, found - 1);
        const int begin = found > 0 ? up_to_last : 0;
        const int places = __shfl_sync(0xffffffffu, up_to, found) - begin;
        const int inside = index - before - heads * begin;
        BlockCursor at;
        at.sequence = sequence + found;
        enter(at);
        if constexpr (S.nested) at.ahead = places - at.places();
        at.head = quotient(inside, places);
        at.block = inside - at.head * places - at.ahead;
        return at;
      }
      before = __shfl_sync(0xffffffffu, end, kWarpSize - 1);
    }
  }

  // To the first place of the next head; there has to be one. Where heads begin with empty places
  // no CTA has two.
  __device__ __forceinline__ void next_head(BlockCursor& at) const {
    at.block = 0;
    if (++at.head < heads) return;
    at.head = 0;
    do {
      ++at.sequence;
      enter(at);
    } while (at.blocks == 0);
  }

  // Places of a head of all sequences before one. By whole warps.
  __device__ __forceinline__ int places_before(int sequence) const {
    const int lane = threadIdx.x % kWarpSize;
    u32 sum = lane < sequence ? own : 0;
#pragma unroll 1
    for (int b = lane + kWarpSize; b < sequence; b += kWarpSize) sum += whole(counted(b));
    return static_cast<int>(__reduce_add_sync(0xffffffffu, sum));
  }

 private:
  static constexpr int kWholes = 16;

  __device__ __forceinline__ void count_places() { total = places_before(batch) * heads; }

  // Rounded up by a sixteenth at most, so that shares end where heads do if their lengths are
  // powers of two: a head that is cut has to be merged.
  __device__ __forceinline__ void share_among(const Reciprocal& by_ctas) {
    share = divided(max_of(total, 1) - 1, by_ctas) + 1;
    if (share >= kWholes) {
      const int multiple = 1 << (31 - __clz(share / kWholes));
      share = share + multiple - 1 & -multiple;
    }
  }

  // Lets heads begin where shares do, if these become longer by a sixteenth at most.
  __device__ __forceinline__ void give_heads_shares(const DecodeParams& p) {
    if (Blocks::recent == 0 || p.ctas_of_head == 0) return;
    int most = own;
#pragma unroll 1
    for (int b = threadIdx.x % kWarpSize + kWarpSize; b < batch; b += kWarpSize) {
      most = max_of(most, counted(b));
    }
    most = static_cast<int>(__reduce_max_sync(0xffffffffu, static_cast<u32>(most)));
    const int even = divided(most + p.ctas_of_head - 1, p.by_ctas_of_head);
    if (even > share + share / kWholes) return;
    share = max_of(even, 1);
    granule = share;
    own = whole(own);
    count_places();
  }

  // Places of a head with the empty ones ahead.
  __device__ __forceinline__ int whole(int places) const {
    if constexpr (!S.nested) return places;
    return granule > 1 ? static_cast<int>(ceil_div<u32>(places, granule)) * granule : places;
  }
  // Without those, of a sequence; 0 beyond the batch.
  __device__ __forceinline__ int counted(int sequence) const {
    if (sequence >= batch) return 0;
    BlockCursor at{.sequence = sequence};
    enter(at);
    return at.places();
  }
  __device__ __forceinline__ void enter(BlockCursor& at) const {
    Blocks::count(at, __ldg(lengths + at.sequence));
  }
};
