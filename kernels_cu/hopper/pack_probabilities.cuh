// Four probabilities of a row, rounded to the type that P V takes, where its A operand has them.
#pragma once
#include "hopper/tile_shape.cuh"
#include "ptx/convert.cuh"

// `pair` counts the pairs of MMA tiles of one step of k, `half` a lane's rows.
template <WgmmaSpec S>
__device__ __forceinline__ void pack_probabilities(u32 (&p)[TileShape<S>::kProbabilities],
                                                   const float (&y)[4], int step, int pair,
                                                   int half) {
  if constexpr (S.pv == Type::int8) {
    p[4 * step + 2 * pair + half] = ptx::pack_u8x4(y[0], y[1], y[2], y[3]);
  } else if constexpr (S.pv == Type::e4m3) {
    p[4 * step + 2 * pair + half] = ptx::pack_e4m3x4(y[0], y[1], y[2], y[3]);
  } else {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      p[4 * step + 2 * e + half] = S.pv == Type::fp16
                                         ? ptx::pack_f16x2(y[2 * e], y[2 * e + 1])
                                         : ptx::pack_bf16x2(y[2 * e], y[2 * e + 1]);
    }
  }
}
