// Packing conversions. Rounding is to nearest even; a NaN becomes the code 0.
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

#if __CUDA_ARCH__ >= 890
// Saturates at 448.
__device__ __forceinline__ u32 pack_e4m3x4(float x0, float x1, float x2, float x3) {
  u32 packed;
  asm("{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}"
      : "=r"(packed)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return packed;
}
#endif

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

}  // namespace ptx
