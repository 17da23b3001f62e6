// Exact conversions to float.
#pragma once
#include "numeric.cuh"

namespace ptx {

__device__ __forceinline__ void widen_f16x2(float (&x)[2], u32 pair) {
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(x[0]), "=f"(x[1])
      : "r"(pair));
}

// A bfloat16 is the upper half of a float. Not plain C++, because the compiler would then rather
// keep a whole tile of floats in registers than convert it twice.
__device__ __forceinline__ void widen_bf16x2(float (&x)[2], u32 pair) {
  asm("shl.b32 %0, %2, 16;\nand.b32 %1, %2, 0xffff0000;" : "=&f"(x[0]), "=f"(x[1]) : "r"(pair));
}

}  // namespace ptx
