// Barriers in shared memory that threads wait for without arriving (PTX ISA, "mbarrier"), and those
// of some warps of a CTA (PTX ISA, "barrier.cta"), of which number 0 is that of __syncthreads.
#pragma once
#include "numeric.cuh"

namespace ptx {

// Every phase of the barrier takes `count` arrivals.
__device__ __forceinline__ void mbarrier_init(u32 barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Releases what this thread has done so far.
__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(barrier)
               : "memory");
}

// Arrives, and makes the phase wait for `bytes` more of bulk copies.
__device__ __forceinline__ void mbarrier_expect(u32 barrier, u32 bytes) {
  asm volatile(
      "{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n}" ::"r"(
          barrier),
      "r"(bytes)
      : "memory");
}

// Makes initialized barriers visible to bulk copies.
__device__ __forceinline__ void mbarrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives once the asynchronous copies that this thread has started are complete.
__device__ __forceinline__ void mbarrier_arrive_on_copies(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// Waits for the end of the phase of this parity: 0 for the first, third, ..., 1 for the others.
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
#if __CUDA_ARCH__ >= 900
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
#else
      "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
#endif
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// All of the warps, `threads` in all, with what each has written before.
template <int Number>
__device__ __forceinline__ void barrier_sync(int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"n"(Number), "r"(threads) : "memory");
}

// The same with a number that is not known before.
__device__ __forceinline__ void barrier_sync(int number, int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Makes what this thread has written to shared memory visible to what reads or overwrites it
// without threads: products of warpgroups and bulk copies (PTX ISA, "membar.proxy").
__device__ __forceinline__ void async_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace ptx
