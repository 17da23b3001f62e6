// Sums of the four lanes that share a row of an MMA tile.
#pragma once

__device__ __forceinline__ float sum_across_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
