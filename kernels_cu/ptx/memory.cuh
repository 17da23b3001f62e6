// Loads from global memory with a word to the caches (PTX ISA, "ld").
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

}  // namespace ptx
