// Copies into shared memory that one thread starts and a barrier counts in bytes (PTX ISA,
// "cp.async.bulk", "cp.async.bulk.tensor").
#pragma once
#include "numeric.cuh"

namespace ptx {

// A box of a tensor of four axes, innermost first; what lies outside the tensor becomes zeros.
__device__ __forceinline__ void bulk_copy_box(u32 smem, const TensorMap& map, int x0, int x1,
                                              int x2, int x3, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(smem),
      "l"(&map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(barrier)
      : "memory");
}

// The same of a tensor of five axes.
__device__ __forceinline__ void bulk_copy_box(u32 smem, const TensorMap& map, int x0, int x1,
                                              int x2, int x3, int x4, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(smem),
      "l"(&map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(barrier)
      : "memory");
}

// Addresses and `bytes` are multiples of 16.
__device__ __forceinline__ void bulk_copy(u32 smem, const void* gmem, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(smem),
      "l"(gmem), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

}  // namespace ptx
