// Whose turn a buffer of a ring is.
#pragma once
#include "ptx/barriers.cuh"

// Counts the fillings of a ring of buffers, of which each has a barrier `full` and one `empty`.
template <int Buffers>
struct Turn {
  int buffer = 0;
  u32 parity = 0;

  __device__ __forceinline__ void next() {
    if (++buffer == Buffers) {
      buffer = 0;
      parity ^= 1;
    }
  }
  // By those who read: until the buffer is filled.
  __device__ __forceinline__ void wait_full(u32 barriers) const {
    ptx::mbarrier_wait(barriers + 8 * buffer, parity);
  }
  // By the one who fills: until it has been read in the round before, if there was one.
  __device__ __forceinline__ void wait_empty(u32 barriers) const {
    ptx::mbarrier_wait(barriers + 8 * buffer, parity ^ 1);
  }
};
