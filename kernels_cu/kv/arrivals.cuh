// Who merges a head that several CTAs have parts of: the last to arrive.
#pragma once
#include "kv/merge.cuh"
#include "ptx/memory.cuh"

// The parts that a CTA leaves, at most one of its first head and one of its last.
struct Arrivals {
  BlockCursor at[2];
  int begin[2];   // of the heads, in the list of blocks
  u32 before[2];  // parts that were there before; of thread 0
  bool left[2] = {false, false};

  // By all computing threads, after they have met behind the stores of the part. Nothing waits for
  // the counter's answer before `merge`.
  template <DecodeSpec S>
  __device__ __forceinline__ void arrive(const DecodeParams& p, const Partition<S>& partition,
                                         const HeadShare& head) {
    if (head.is_whole) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (head.is_first != (i == 0)) continue;
      at[i] = head.at;
      begin[i] = head.begin;
      left[i] = true;
      if (threadIdx.x == 0) before[i] = ptx::count_arrival(counter(p, partition, i));
    }
  }

  // Merges the heads at which all others had arrived. By all computing threads.
  template <DecodeSpec S>
  __device__ __forceinline__ void merge(const DecodeParams& p, DecodeStorage<S>& storage,
                                        const Partition<S>& partition) const {
    if (!left[0] && !left[1]) return;
    HeadParts<S> parts[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!left[i]) continue;
      if constexpr (S.batch_invariant) {
        const int cta = partition.first_cta(at[i]);
        parts[i].first = &partial_of<S>(p, cta, true);
        parts[i].rest = &partial_of<S>(p, cta + 1, true);
        parts[i].count = partition.parts_in(at[i].length);
      } else {
        const int cta = partition.owner(begin[i]);
        parts[i].first = &partial_of<S>(p, cta, partition.begin(cta) >= begin[i] - at[i].ahead);
        parts[i].rest = &partial_of<S>(p, cta + 1, true);
        parts[i].count = partition.owner(begin[i] + at[i].blocks - 1) - cta + 1;
      }
      if (threadIdx.x == 0) storage.arrived[i] = before[i];
    }
    if (threadIdx.x == 0) ptx::acquire();
    meet();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!left[i] || storage.arrived[i] + 1 != static_cast<u32>(parts[i].count)) continue;
      if (threadIdx.x == 0) *counter(p, partition, i) = 0;
      merge_parts<S>(p, storage, at[i], parts[i]);
    }
  }

 private:
  template <DecodeSpec S>
  __device__ __forceinline__ u32* counter(const DecodeParams& p, const Partition<S>& partition,
                                          int i) const {
    return p.arrivals + static_cast<i64>(at[i].sequence) * partition.heads + at[i].head;
  }
};
