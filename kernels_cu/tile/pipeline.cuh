// A ring of stages in shared memory that all warps fill together and read each at its own pace.
#pragma once
#include "ptx/barriers.cuh"

// No warp waits for another one's arithmetic, so that the tensor cores serve one warp while another
// is at its exponentials. `full` completes when every thread's copies have landed, `empty` when
// every warp has read the stage.
template <int Stages>
struct alignas(16) RingBarriers {
  unsigned long long full[Stages];
  unsigned long long empty[Stages];
};

template <int Stages>
struct Ring {
  static_assert((Stages & (Stages - 1)) == 0);
  u32 full;
  u32 empty;

  __device__ __forceinline__ explicit Ring(u32 barriers)
      : full(barriers), empty(barriers + 8 * Stages) {}

  // By one thread, before any other uses the ring.
  __device__ __forceinline__ void init(int threads) const {
    for (int stage = 0; stage < Stages; ++stage) {
      ptx::mbarrier_init(full + 8 * stage, threads);
      ptx::mbarrier_init(empty + 8 * stage, threads);
    }
  }

  // Of the n-th filling: its stage, and the parity of its round. Not counted but computed, because
  // registers are scarcer than instructions.
  static __device__ __forceinline__ u32 stage(int n) { return static_cast<u32>(n) % Stages; }
  static __device__ __forceinline__ u32 parity(int n) { return static_cast<u32>(n) / Stages % 2; }

  // Before a stage is filled: waits until it has been read in the round before, if there was one.
  __device__ __forceinline__ void wait_empty(int n) const {
    ptx::mbarrier_wait(empty + 8 * stage(n), parity(n) ^ 1);
  }

  // By every thread, after it has started its copies into the stage.
  __device__ __forceinline__ void commit(int n) const {
    ptx::mbarrier_arrive_on_copies(full + 8 * stage(n));
  }

  __device__ __forceinline__ void wait_full(int n) const {
    ptx::mbarrier_wait(full + 8 * stage(n), parity(n));
  }

  // By every thread that has read the stage.
  __device__ __forceinline__ void release(int n) const {
    ptx::mbarrier_arrive(empty + 8 * stage(n));
  }
};
