// Codes of 4 bits, two a byte, as int8, for products that have no 4-bit operands. The first is in
// the lower half of a byte. A CTA owns pieces of 16 codes that follow each other in memory.
#include "numeric.cuh"

// cuattn/specs/unpack.py mirrors it; cuattn/compile/params.py reads the arguments after it.
struct UnpackSpec {
  int pieces;          // of 16 codes, in one CTA
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct UnpackParams {
  const void* packed;  // codes of 4 bits, two a byte, the first in the lower half
  void* codes;         // the same, one a byte
  i64 pieces;          // of 16 codes
};

// The signed number in the lower half of each byte, of which the upper half is zero.
__device__ __forceinline__ u32 sign_extend_nibbles(u32 x) {
  return x | (x & 0x08080808u) * 0x1eu;  // 8 becomes 0xf8
}

// The bytes of `first` and of `second` in turn: those of their lower halves, or of their upper.
__device__ __forceinline__ u32 interleave_lower(u32 first, u32 second) {
  return __byte_perm(first, second, 0x5140);
}
__device__ __forceinline__ u32 interleave_upper(u32 first, u32 second) {
  return __byte_perm(first, second, 0x7362);
}

__device__ __forceinline__ uint4 unpack_16(uint2 packed) {
  const u32 x0 = sign_extend_nibbles(packed.x & 0x0f0f0f0fu);
  const u32 x1 = sign_extend_nibbles(packed.x >> 4 & 0x0f0f0f0fu);
  const u32 y0 = sign_extend_nibbles(packed.y & 0x0f0f0f0fu);
  const u32 y1 = sign_extend_nibbles(packed.y >> 4 & 0x0f0f0f0fu);
  return make_uint4(interleave_lower(x0, x1), interleave_upper(x0, x1), interleave_lower(y0, y1),
                    interleave_upper(y0, y1));
}

template <UnpackSpec S>
__device__ __forceinline__ void unpack(const UnpackParams& p) {
  constexpr int kPieces = S.pieces / S.num_threads;  // of a thread, all loads under way at once
  static_assert(kPieces * S.num_threads == S.pieces, "cuattn/specs/unpack.py disagrees");
  const i64 first = static_cast<i64>(blockIdx.x) * S.pieces + threadIdx.x;
  const uint2* from = static_cast<const uint2*>(p.packed) + first;
  uint4* to = static_cast<uint4*>(p.codes) + first;
  uint2 packed[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (first + i * S.num_threads < p.pieces) packed[i] = __ldcs(from + i * S.num_threads);
  }
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (first + i * S.num_threads < p.pieces) to[i * S.num_threads] = unpack_16(packed[i]);
  }
}
