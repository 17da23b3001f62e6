// Packing conversions, and back to float. Rounding is to nearest even; a NaN becomes the integer 0,
// or an e4m3 NaN. Conversions to float are exact.
#pragma once
#include "numeric.cuh"

namespace ptx {

// cvt.rni.s32 twice and cvt.pack fuse into one two-source F2IP on sm_90; cvt.rni.sat.u8 never does,
// and F2I alone runs at a quarter of the rate.
#define CUATTN_PACK4(NAME, TYPE)                                                                  \
  __device__ __forceinline__ u32 NAME(float x0, float x1, float x2, float x3) {                   \
    u32 packed;                                                                                   \
    asm("{\n.reg .s32 a, b, c, d;\n.reg .b32 upper;\n"                                            \
        "cvt.rni.s32.f32 a, %1;\ncvt.rni.s32.f32 b, %2;\n"                                        \
        "cvt.rni.s32.f32 c, %3;\ncvt.rni.s32.f32 d, %4;\n"                                        \
        "cvt.pack.sat." TYPE ".s32.b32 upper, d, c, 0;\n"                                         \
        "cvt.pack.sat." TYPE ".s32.b32 %0, b, a, upper;\n}"                                       \
        : "=r"(packed)                                                                            \
        : "f"(x0), "f"(x1), "f"(x2), "f"(x3));                                                    \
    return packed;                                                                                \
  }

CUATTN_PACK4(pack_u8x4, "u8")
CUATTN_PACK4(pack_s8x4, "s8")
#undef CUATTN_PACK4

// Integers of 16 bits, unsigned: their upper and their lower bytes.
__device__ __forceinline__ void split_u16x4(u32& upper, u32& lower, float x0, float x1, float x2,
                                            float x3) {
  asm("{\n.reg .u32 a, b, c, d, ab, cd;\n"
      "cvt.rni.u32.f32 a, %2;\ncvt.rni.u32.f32 b, %3;\n"
      "cvt.rni.u32.f32 c, %4;\ncvt.rni.u32.f32 d, %5;\n"
      "prmt.b32 ab, a, b, 0x5410;\nprmt.b32 cd, c, d, 0x5410;\n"
      "prmt.b32 %0, ab, cd, 0x7531;\nprmt.b32 %1, ab, cd, 0x6420;\n}"
      : "=r"(upper), "=r"(lower)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
}

// What is beyond 448 becomes 448. From sm_89 on.
__device__ __forceinline__ u32 pack_e4m3x4(float x0, float x1, float x2, float x3) {
  u32 packed = 0;
#if __CUDA_ARCH__ >= 890
  asm("{\n.reg .b16 lower, upper;\n"
      "cvt.rn.satfinite.e4m3x2.f32 lower, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 upper, %4, %3;\n"
      "mov.b32 %0, {lower, upper};\n}"
      : "=r"(packed)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
#else
  __trap();  // cuattn/plan/kernels.py asks for no such kernel
#endif
  return packed;
}

__device__ __forceinline__ u32 pack_f16x2(float low, float high) {
  u32 packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ u32 pack_bf16x2(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

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
