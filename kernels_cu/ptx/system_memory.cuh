// Memory that other GPUs, or the host, write or read meanwhile (PTX ISA, "ld", "st", scope .sys).
#pragma once
#include "numeric.cuh"

namespace ptx {

// Two words of 8 bytes, each of which is there as a whole or not at all. To a multiple of 16.
__device__ __forceinline__ void store_system(u64* to, u64 first, u64 second) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1,%2};" ::"l"(to), "l"(first), "l"(second)
               : "memory");
}

// The same way: each is what was there before, or what has been written.
__device__ __forceinline__ void load_system(u64& first, u64& second, const u64* from) {
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0,%1}, [%2];"
               : "=l"(first), "=l"(second)
               : "l"(from)
               : "memory");
}

__device__ __forceinline__ u32 load_system(const u32* from) {
  u32 x;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}

}  // namespace ptx
