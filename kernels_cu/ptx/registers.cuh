// What is in registers, and how many of them there are.
#pragma once
#include "numeric.cuh"

namespace ptx {

// Keeps the compiler from computing a loop-invariant value again in every iteration, which for
// values of threadIdx means a slow read of a special register.
template <class T>
__device__ __forceinline__ T opaque(T x) {
  static_assert(sizeof(T) == 4);
  asm volatile("" : "+r"(x));
  return x;
}

// A warpgroup gives registers back or takes some (PTX ISA, "setmaxnreg"). What all warpgroups have
// at the end must fit what the kernel was launched with, or one waits for ever.
template <int Registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

template <int Registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace ptx
