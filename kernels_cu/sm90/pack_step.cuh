// Probabilities of a step of k of P V, as the tensor cores take them.
#pragma once
#include "attn/pack_terms.cuh"
#include "sm90/tile_shape.cuh"

// Stores four probabilities of a row: those of a lane in the `pair`-th two key tiles of a step.
template <WgmmaSpec S>
__device__ __forceinline__ void pack_step(u32 (&p)[kTerms<S>][TileShape<S>::kProbabilities],
                                          const float (&y)[4], const AttentionParams& params,
                                          int step, int pair, int half) {
  if constexpr (TileShape<S>::kScaledValues) {
    u32 word[kTerms<S>];
    pack_terms<S>(word, y, params);
#pragma unroll
    for (int term = 0; term < kTerms<S>; ++term) p[term][4 * step + 2 * pair + half] = word[term];
  } else {
    u32 word[2];
    pack_halves<S>(word, y);
    p[0][4 * step + half] = word[0];
    p[0][4 * step + 2 + half] = word[1];
  }
}
