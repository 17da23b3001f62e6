// Zeros in place of what lies in a tile of V behind the last key of its sequence.
//
// A bulk copy brings what follows in memory: another sequence, or padding that may hold anything.
// P is 0 there, but 0 * NaN is NaN.
#pragma once
#include "ptx/barriers.cuh"
#include "ptx/shared.cuh"
#include "sm90/tile_shape.cuh"

// By the threads of a warpgroup, number `group`, of a tile of values in `keys` rows. Others may do
// the same, or read what this one has done, at the same time.
template <WgmmaSpec S>
__device__ __forceinline__ void clear_values(u32 tile, int keys, int group) {
  using Tile = typename TileShape<S>::VTile;
  if (keys >= S.block_kv) return;
  const int first = 16 * (threadIdx.x % kWarpgroupSize) + keys * Tile::pitch;
#pragma unroll 1
  for (int panel = 0; panel < Tile::bytes; panel += Tile::panel_bytes) {
#pragma unroll 1
    for (int at = first; at < Tile::panel_bytes; at += 16 * kWarpgroupSize) {
      ptx::park(tile + panel + at, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
  }
  ptx::async_fence();
  ptx::barrier_sync(1 + group, kWarpgroupSize);
}
