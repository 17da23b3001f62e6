// A counter in global memory by which threads hand over what they have written (PTX ISA, "atom",
// "fence").
#pragma once
#include "numeric.cuh"

namespace ptx {

// Adds 1 and returns what was there. What this thread wrote before, and those that it has met in a
// barrier, is visible after `acquire` to whoever sees the new number.
__device__ __forceinline__ u32 count_arrival(u32* counter) {
  u32 before;
  asm volatile("fence.acq_rel.gpu;\natom.relaxed.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

__device__ __forceinline__ void acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

}  // namespace ptx
