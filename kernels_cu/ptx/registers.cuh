// What is in registers and when, and how many of them there are.
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

// 0, made from an integer that is not negative; of that the compiler knows nothing.
__device__ __forceinline__ u32 hidden_zero(int x) { return static_cast<u32>(x >> 31); }

// x, but not before y is there: ptxas moves instructions past anything but a dependence. `zero` is
// a hidden one.
__device__ __forceinline__ float after(float x, float y, u32 zero) {
  return __uint_as_float(__float_as_uint(x) ^ (__float_as_uint(y) & zero));
}

// The number of the thread's warp. That all lanes have the same the compiler knows only so; else
// every shuffle behind a branch on it gets a second way, for lanes that have parted.
__device__ __forceinline__ int warp_number() {
  return static_cast<int>(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0));
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
