// Shared memory of the quantizer.
#pragma once
#include "quant/transposed_tile.cuh"

template <QuantizeSpec S>
struct alignas(16) QuantizeStorage {
  TransposedTile<S> codes;              // of V
  f32 vector[S.head_dim];               // what V is smoothed by, and what makes codes of it,
  f32 factor[S.head_dim];               // if it has a scale per channel
  f32 amax[S.num_threads / kWarpSize];  // of each warp
};
