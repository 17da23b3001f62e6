// Registers that a warpgroup gives back or takes (PTX ISA, "setmaxnreg"). What all warpgroups have
// at the end must fit what the kernel was launched with, or one waits for ever.
#pragma once
#include "numeric.cuh"

namespace ptx {

template <int Registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

template <int Registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace ptx
