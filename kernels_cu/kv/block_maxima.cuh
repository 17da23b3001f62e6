// The maximum of each row of a block, of which every computing warp sees a quarter.
#pragma once
#include "kv/lane_tokens.cuh"
#include "ptx/barriers.cuh"
#include "ptx/math.cuh"

// A barrier of the computing warps.
__device__ __forceinline__ void meet() { ptx::barrier_sync<1>(kComputingThreads); }

// Writes the maxima of the warp's tokens, of exponents with a group's V scales in them, of whose
// logarithms the lane has those of its tokens.
template <DecodeSpec S>
__device__ __forceinline__ void share_maxima(const LanePlaces<S>& at,
                                             typename DecodeShape<S>::Scores& s,
                                             const float (&log2_v)[kLaneTokens], int group,
                                             int lane) {
  DecodeShape<S>::for_rows([&](int tile, int half) {
    const int row = 16 * tile + 8 * half;
    float top = -kInf;
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
      top = fmaxf(top, score_of<S>(s[tile], i / 4, i % 4, half) + log2_v[i]);
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    if (lane % 4 == 0) at.own_maximum[kComputingWarps * (S.rows * group + row)] = top;
  });
}

// The maximum of the block, after the warps have met.
template <DecodeSpec S>
__device__ __forceinline__ float block_max(const LanePlaces<S>& at, int group, int tile,
                                           int half) {
  const float4 m = at.maxima[S.rows * group + 16 * tile + 8 * half];
  return fmaxf(fmaxf(m.x, m.y), fmaxf(m.z, m.w));
}
