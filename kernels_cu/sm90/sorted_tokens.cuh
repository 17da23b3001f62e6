// Which token of a block of sorted keys is in each place, as floats.
#pragma once
#include "layout.cuh"
#include "numeric.cuh"

// In shared memory, by a warp for itself: less half a block, in the order of slots (layout.cuh), so
// that those of a lane's keys of two tiles are one load. Places of a block without an order are
// those of columns.
__device__ __forceinline__ void put_tokens(float* to, const u8* order, bool ordered, int lane) {
  // Of four bytes, two of each of two tiles.
  const u32 word = ordered ? reinterpret_cast<const u32*>(order)[lane % 4 * 8 + lane / 4]
                           : 0x09080100u + lane % 4 * 0x02020202u + lane / 4 * 0x10101010u;
  // A number below 128 in the upper bits of a fraction makes a float from 128 on.
  constexpr float kLess = 128.0f + kSortedBlock / 2;
  float4 four;
  four.x = __uint_as_float(__byte_perm(word, 0x43000000u, 0x7044u)) - kLess;
  four.y = __uint_as_float(__byte_perm(word, 0x43000000u, 0x7144u)) - kLess;
  four.z = __uint_as_float(__byte_perm(word, 0x43000000u, 0x7244u)) - kLess;
  four.w = __uint_as_float(__byte_perm(word, 0x43000000u, 0x7344u)) - kLess;
  __syncwarp();
  reinterpret_cast<float4*>(to)[lane] = four;
  __syncwarp();
}
