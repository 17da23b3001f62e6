// Warpgroup matrix products of sm_90a (PTX ISA, "wgmma"). D = A * B or D += A * B, D 64 x N.
// One step of k is 32 bytes of each operand row. Warp w of the warpgroup has rows 16 w .. 16 w + 15
// of A and D, laid out across its lanes as ptx/mma.cuh describes for 16 rows; element 4 n + e of a
// lane's D is element e of MMA column n. B, and A where it is not in registers, are tiles in shared
// memory, named by descriptors.
#pragma once
#include "numeric.cuh"

namespace ptx {

// Everything that was written to a tile's registers before comes before the products after it.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Makes what this thread wrote to shared memory visible to products.
__device__ __forceinline__ void fence_for_async_reads() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `Pending` committed groups are under way.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Ties registers to a point of the program: products under way read or write them unseen.
#define CUATTN_HOLD(TYPE, CONSTRAINT)                                                    \
  template <int Count>                                                                   \
  __device__ __forceinline__ void hold(TYPE(&x)[Count]) {                                \
    _Pragma("unroll") for (int i = 0; i < Count; ++i) {                                  \
      asm volatile("" : CONSTRAINT(x[i])::"memory");                                     \
    }                                                                                    \
  }
CUATTN_HOLD(int, "+r")
CUATTN_HOLD(u32, "+r")
CUATTN_HOLD(float, "+f")
#undef CUATTN_HOLD

// A tile whose rows lie `Swizzle` = 64 or 128 bytes apart, chunks of 16 bytes permuted among each
// other as TMA does; or, 0, one of matrices of 8 rows of 16 bytes. `leading` and `stride` are the
// distances in bytes of the canonical layouts (PTX ISA, "Strides"): K-major, 8 rows take `stride`,
// and without a swizzle the next 16 bytes of k are `leading` further; MN-major, 8 steps of k take
// `stride` and 64 elements of the other axis `leading`.
template <int Swizzle>
__device__ __forceinline__ u64 tile_descriptor(u32 address, u32 leading, u32 stride) {
  static_assert(Swizzle == 0 || Swizzle == 64 || Swizzle == 128);
  return static_cast<u64>((address & 0x3ffff) >> 4) | static_cast<u64>(leading >> 4) << 16 |
         static_cast<u64>(stride >> 4) << 32 |
         static_cast<u64>(Swizzle == 0 ? 0 : Swizzle == 128 ? 1 : 2) << 62;
}

// From the descriptor of a tile to that of what lies `bytes` further.
__device__ __forceinline__ u64 advance(u64 descriptor, u32 bytes) {
  // The address is in the lower half, from which nothing is carried.
  return (descriptor & 0xffffffff00000000ull) | (static_cast<u32>(descriptor) + (bytes >> 4));
}

#define CUATTN_D16                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define CUATTN_D32 CUATTN_D16                                                            \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CUATTN_D48 CUATTN_D32                                                            \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define CUATTN_D64 CUATTN_D48                                                            \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CUATTN_R4(C, o) C(d[o]), C(d[o + 1]), C(d[o + 2]), C(d[o + 3])
#define CUATTN_QUADS(C, o) \
  CUATTN_R4(C, o), CUATTN_R4(C, o + 4), CUATTN_R4(C, o + 8), CUATTN_R4(C, o + 12)
#define CUATTN_R16(C) CUATTN_QUADS(C, 0)
#define CUATTN_R32(C) CUATTN_QUADS(C, 0), CUATTN_QUADS(C, 16)
#define CUATTN_R48(C) CUATTN_R32(C), CUATTN_QUADS(C, 32)
#define CUATTN_R64(C) CUATTN_R48(C), CUATTN_QUADS(C, 48)

// A in shared memory. The products of both operands' signs are added as they are: `, 1, 1`, and
// neither is transposed: `, 0, 0`.
#define CUATTN_WGMMA_SS(NAME, D_TYPE, CONSTRAINT, N, R, SHAPE, A, B, P, SIGNS)                    \
  template <bool Accumulate>                                                                      \
  __device__ __forceinline__ void NAME(D_TYPE(&d)[R], u64 a, u64 b) {                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N SHAPE " {" CUATTN_D##R "}, %" #A ", %" #B \
                 ", %" #P SIGNS ";"                                                               \
                 : CUATTN_R##R(CONSTRAINT)                                                        \
                 : "l"(a), "l"(b), "n"(static_cast<int>(Accumulate)));                            \
  }
// A in registers.
#define CUATTN_WGMMA_RS(NAME, D_TYPE, CONSTRAINT, N, R, SHAPE, A0, A1, A2, A3, B, P, SIGNS)       \
  template <bool Accumulate>                                                                      \
  __device__ __forceinline__ void NAME(D_TYPE(&d)[R], const u32* a, u64 b) {                      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N SHAPE " {" CUATTN_D##R "}, {%" #A0 ",%"   \
                 #A1 ",%" #A2 ",%" #A3 "}, %" #B ", %" #P SIGNS ";" \
                 : CUATTN_R##R(CONSTRAINT)                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                            \
                   "n"(static_cast<int>(Accumulate)));                                            \
  }

#define CUATTN_WGMMA_SS_SIZES(NAME, D_TYPE, C, SHAPE, SIGNS)                \
  CUATTN_WGMMA_SS(NAME, D_TYPE, C, 64, 32, SHAPE, 32, 33, 34, SIGNS)        \
  CUATTN_WGMMA_SS(NAME, D_TYPE, C, 96, 48, SHAPE, 48, 49, 50, SIGNS)        \
  CUATTN_WGMMA_SS(NAME, D_TYPE, C, 128, 64, SHAPE, 64, 65, 66, SIGNS)
#define CUATTN_WGMMA_RS_SIZES(NAME, D_TYPE, C, SHAPE, SIGNS)                            \
  CUATTN_WGMMA_RS(NAME, D_TYPE, C, 32, 16, SHAPE, 16, 17, 18, 19, 20, 21, SIGNS)        \
  CUATTN_WGMMA_RS(NAME, D_TYPE, C, 64, 32, SHAPE, 32, 33, 34, 35, 36, 37, SIGNS)        \
  CUATTN_WGMMA_RS(NAME, D_TYPE, C, 96, 48, SHAPE, 48, 49, 50, 51, 52, 53, SIGNS)        \
  CUATTN_WGMMA_RS(NAME, D_TYPE, C, 128, 64, SHAPE, 64, 65, 66, 67, 68, 69, SIGNS)

#define CUATTN_INT(x) "+r"(x)
#define CUATTN_FLOAT(x) "+f"(x)
CUATTN_WGMMA_SS_SIZES(wgmma_s8_s8, int, CUATTN_INT, "k32.s32.s8.s8", "")
CUATTN_WGMMA_RS_SIZES(wgmma_u8_s8, int, CUATTN_INT, "k32.s32.u8.s8", "")
CUATTN_WGMMA_RS_SIZES(wgmma_s8_u8, int, CUATTN_INT, "k32.s32.s8.u8", "")
CUATTN_WGMMA_SS_SIZES(wgmma_e4m3, float, CUATTN_FLOAT, "k32.f32.e4m3.e4m3", ", 1, 1")
CUATTN_WGMMA_RS_SIZES(wgmma_e4m3, float, CUATTN_FLOAT, "k32.f32.e4m3.e4m3", ", 1, 1")
// B of the 16-bit products: K-major where A is in shared memory, MN-major where it is not.
CUATTN_WGMMA_SS_SIZES(wgmma_f16, float, CUATTN_FLOAT, "k16.f32.f16.f16", ", 1, 1, 0, 0")
CUATTN_WGMMA_RS_SIZES(wgmma_f16, float, CUATTN_FLOAT, "k16.f32.f16.f16", ", 1, 1, 1")
CUATTN_WGMMA_SS_SIZES(wgmma_bf16, float, CUATTN_FLOAT, "k16.f32.bf16.bf16", ", 1, 1, 0, 0")
CUATTN_WGMMA_RS_SIZES(wgmma_bf16, float, CUATTN_FLOAT, "k16.f32.bf16.bf16", ", 1, 1, 1")

#undef CUATTN_INT
#undef CUATTN_FLOAT
#undef CUATTN_WGMMA_SS
#undef CUATTN_WGMMA_RS
#undef CUATTN_WGMMA_SS_SIZES
#undef CUATTN_WGMMA_RS_SIZES
#undef CUATTN_D16
#undef CUATTN_D32
#undef CUATTN_D48
#undef CUATTN_D64
#undef CUATTN_R4
#undef CUATTN_R16
#undef CUATTN_QUADS
#undef CUATTN_R32
#undef CUATTN_R48
#undef CUATTN_R64

}  // namespace ptx
