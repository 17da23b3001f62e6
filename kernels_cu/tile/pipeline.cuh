// A ring of stages in shared memory that all warps fill together and read each at its own pace.
#pragma once
#include "ptx/mbarrier.cuh"

// No warp waits for another one's arithmetic, so that the tensor cores serve one warp while another
// is at its exponentials. `full` completes when every thread's copies have landed, `empty` when
// every warp has read the stage.
template <int Stages>
struct alignas(16) RingBarriers {
  unsigned long long full[Stages];
  unsigned long long empty[Stages];
};

// A place in the ring and the parity of its round.
template <int Stages>
struct RingPosition {
  int stage = 0;
  u32 parity = 0;

  __device__ __forceinline__ void advance() {
    if constexpr (Stages == 1) {
      parity ^= 1;
    } else {
      stage = stage + 1 == Stages ? 0 : stage + 1;
      parity ^= stage == 0;
    }
  }
};

template <int Stages>
struct Ring {
  u32 full;
  u32 empty;

  __device__ __forceinline__ explicit Ring(u32 barriers)
      : full(barriers), empty(barriers + 8 * Stages) {}

  // By one thread, before any other uses the ring.
  __device__ __forceinline__ void init(int threads) const {
    for (int stage = 0; stage < Stages; ++stage) {
      ptx::mbarrier_init(full + 8 * stage, threads);
      ptx::mbarrier_init(empty + 8 * stage, threads / kWarpSize);
    }
  }

  // Before a stage is filled: waits until it has been read in the round before, if there was one.
  __device__ __forceinline__ void wait_empty(const RingPosition<Stages>& at) const {
    ptx::mbarrier_wait(empty + 8 * at.stage, at.parity ^ 1);
  }

  // By every thread, after it has started its copies into the stage.
  __device__ __forceinline__ void commit(const RingPosition<Stages>& at) const {
    ptx::mbarrier_arrive_on_copies(full + 8 * at.stage);
  }

  __device__ __forceinline__ void wait_full(const RingPosition<Stages>& at) const {
    ptx::mbarrier_wait(full + 8 * at.stage, at.parity);
  }

  // By every lane of a warp that has read the stage.
  __device__ __forceinline__ void release(const RingPosition<Stages>& at, int lane) const {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(empty + 8 * at.stage);
  }
};
