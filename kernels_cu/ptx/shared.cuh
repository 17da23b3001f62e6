// Addresses in shared memory, of which some are to stay in registers, and numbers there that are
// not to (PTX ISA, "ld", "st", volatile).
#pragma once
#include "ptx/registers.cuh"

namespace ptx {

__device__ __forceinline__ u32 smem_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}

// The same pointer to shared memory, held in a register: else it is made again wherever it is used,
// of a special register and constants.
template <class T>
__device__ __forceinline__ T* held(T* smem) {
  return static_cast<T*>(__cvta_shared_to_generic(opaque(smem_address(smem))));
}

__device__ __forceinline__ void park(u32 smem, float4 x) {
  asm volatile("st.volatile.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(smem), "f"(x.x), "f"(x.y),
               "f"(x.z), "f"(x.w)
               : "memory");
}

__device__ __forceinline__ float4 fetch_four(u32 smem) {
  float4 x;
  asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(smem)
               : "memory");
  return x;
}

__device__ __forceinline__ void park(u32 smem, float2 x) {
  asm volatile("st.volatile.shared.v2.f32 [%0], {%1, %2};" ::"r"(smem), "f"(x.x), "f"(x.y)
               : "memory");
}

__device__ __forceinline__ float2 fetch_two(u32 smem) {
  float2 x;
  asm volatile("ld.volatile.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(x.x), "=f"(x.y)
               : "r"(smem)
               : "memory");
  return x;
}

// 16 bytes that copies have brought.
__device__ __forceinline__ uint4 load_shared_16(u32 smem) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(smem)
               : "memory");
  return x;
}

}  // namespace ptx
