// Shared memory of the quantizer.
#pragma once
#include "quant/thread_scope.cuh"
#include "quant/transposed_tile.cuh"

// Largest magnitudes that threads exchange: one of each warp, or of each scope of a tile.
template <QuantizeSpec S>
constexpr int kSharedMaxima =
    max_of(S.num_threads / kWarpSize,
           max_of(S.q_scope == Scope::thread ? S.q_tile / ThreadScope<false>::kTokens : 0,
                  S.k_scope == Scope::thread ? S.k_tile / ThreadScope<true>::kTokens : 0));

template <QuantizeSpec S>
struct alignas(16) QuantizeStorage {
  TransposedTile<S> codes;  // of V
  f32 vector[S.head_dim];   // what V is smoothed by, and what makes codes of it,
  f32 factor[S.head_dim];   // if it has a scale per channel
  u32 amax[kSharedMaxima<S>];  // bits of floats that are not negative, which compare as they do
};
