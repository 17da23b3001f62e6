// Four words as a square of bytes.
#pragma once
#include "numeric.cuh"

// Word i of the result has byte i of each of the four, in their order.
__device__ __forceinline__ void turn_bytes(u32 (&to)[4], u32 a, u32 b, u32 c, u32 d) {
  const u32 low_01 = __byte_perm(a, b, 0x5140);
  const u32 high_01 = __byte_perm(a, b, 0x7362);
  const u32 low_23 = __byte_perm(c, d, 0x5140);
  const u32 high_23 = __byte_perm(c, d, 0x7362);
  to[0] = __byte_perm(low_01, low_23, 0x5410);
  to[1] = __byte_perm(low_01, low_23, 0x7632);
  to[2] = __byte_perm(high_01, high_23, 0x5410);
  to[3] = __byte_perm(high_01, high_23, 0x7632);
}
