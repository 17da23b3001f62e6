// Barriers of some warps of a CTA (PTX ISA, "barrier.cta"). Number 0 is that of __syncthreads.
#pragma once
#include "numeric.cuh"

namespace ptx {

// All of the warps, `threads` in all, with what each has written before.
template <int Number>
__device__ __forceinline__ void barrier_sync(int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"n"(Number), "r"(threads) : "memory");
}

}  // namespace ptx
