// Asynchronous copies from global to shared memory (PTX ISA, "cp.async").
#pragma once
#include "numeric.cuh"

namespace ptx {

// Copies 16 bytes past the L1 cache; the part beyond `bytes` (0 or 16 here) is filled with zeros
// and not read.
__device__ __forceinline__ void cp_async_16(u32 smem, const void* gmem, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem), "l"(gmem),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_16(u32 smem, const void* gmem) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(smem), "l"(gmem)
               : "memory");
}

// The first of these, of bytes that nobody will read again: they leave the L2 cache first.
__device__ __forceinline__ void cp_async_once_16(u32 smem, const void* gmem, int bytes) {
  asm volatile(
      "{\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, policy;\n}" ::"r"(
          smem),
      "l"(gmem), "r"(bytes)
      : "memory");
}

__device__ __forceinline__ void cp_async_4(u32 smem, const void* gmem) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem), "l"(gmem) : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N of this thread's groups are still under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace ptx
