// Warp-level matrix products (PTX ISA, "mma.sync"). D = A * B + C with D 16 x 8.
// One step of k is 32 bytes of each operand row whatever the type: 64 codes of 4 bits, 32 of 8 bits
// or 16 halves.
//   A (16 rows): a[0] row g, a[1] row g + 8, bytes 4t..4t+3; a[2], a[3] the same at byte 16 + 4t
//   B (8 rows):  b0 row g, bytes 4t..4t+3; b1 the same at byte 16 + 4t
//   C, D:        [0], [1] row g, columns 2t, 2t+1; [2], [3] row g + 8        g = lane/4, t = lane%4
// Accumulators are kept in floats; those of integer products hold int32 bits (see kMagic).
#pragma once
#include "numeric.cuh"

namespace ptx {

#define CUATTN_INTEGER_MMA(NAME, SHAPE, A_TYPE, B_TYPE)                                           \
  __device__ __forceinline__ void NAME(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1,          \
                                       const float (&c)[4]) {                                     \
    u32 r0, r1, r2, r3;                                                                           \
    asm volatile("mma.sync.aligned." SHAPE ".row.col.s32." A_TYPE "." B_TYPE ".s32 "              \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                      \
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1),                  \
                   "r"(__float_as_uint(c[0])), "r"(__float_as_uint(c[1])),                        \
                   "r"(__float_as_uint(c[2])), "r"(__float_as_uint(c[3])));                       \
    d[0] = __uint_as_float(r0);                                                                   \
    d[1] = __uint_as_float(r1);                                                                   \
    d[2] = __uint_as_float(r2);                                                                   \
    d[3] = __uint_as_float(r3);                                                                   \
  }

#define CUATTN_FLOAT_MMA(NAME, SHAPE, TYPE)                                                       \
  __device__ __forceinline__ void NAME(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1,          \
                                       const float (&c)[4]) {                                     \
    asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE ".f32 "                  \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                      \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]),       \
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));                                              \
  }

CUATTN_INTEGER_MMA(mma_s8_s8, "m16n8k32", "s8", "s8")
CUATTN_INTEGER_MMA(mma_u8_s8, "m16n8k32", "u8", "s8")
// Native up to sm_89; from sm_90 on PTX turns it into other instructions.
CUATTN_INTEGER_MMA(mma_s4_s4, "m16n8k64", "s4", "s4")
CUATTN_FLOAT_MMA(mma_f16, "m16n8k16", "f16")
CUATTN_FLOAT_MMA(mma_bf16, "m16n8k16", "bf16")
#if __CUDA_ARCH__ >= 890
CUATTN_FLOAT_MMA(mma_e4m3, "m16n8k32", "e4m3")
#else
__device__ __forceinline__ void mma_e4m3(float (&)[4], const u32 (&)[4], u32, u32,
                                         const float (&)[4]) {
  __trap();  // cuattn/plan/kernels.py asks for no such kernel
}
#endif

#undef CUATTN_INTEGER_MMA
#undef CUATTN_FLOAT_MMA

}  // namespace ptx
