// Global memory: loads with a word to the caches, and counters (PTX ISA, "ld", "atom", "fence").
#pragma once
#include "numeric.cuh"

namespace ptx {

// 16 bytes that somebody will read again soon. Nothing is read, and `word` stays, unless `valid`.
__device__ __forceinline__ void load_16(u32 (&word)[4], const void* from, bool valid) {
  asm volatile(
      "{\n.reg .pred valid;\nsetp.ne.s32 valid, %5, 0;\n"
      "@valid ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];\n}"
      : "+r"(word[0]), "+r"(word[1]), "+r"(word[2]), "+r"(word[3])
      : "l"(from), "r"(static_cast<int>(valid)));
}

// The same of 16 bytes that nobody will: they leave the caches first.
__device__ __forceinline__ void load_once_16(u32 (&word)[4], const void* from, bool valid) {
  asm volatile(
      "{\n.reg .pred valid;\nsetp.ne.s32 valid, %5, 0;\n"
      "@valid ld.global.cs.nc.v4.b32 {%0,%1,%2,%3}, [%4];\n}"
      : "+r"(word[0]), "+r"(word[1]), "+r"(word[2]), "+r"(word[3])
      : "l"(from), "r"(static_cast<int>(valid)));
}

// Adds 1 to a counter by which threads hand over what they have written, and returns what was
// there. What this thread wrote before, and those that it has met in a barrier, is visible after
// `acquire` to whoever sees the new number.
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
