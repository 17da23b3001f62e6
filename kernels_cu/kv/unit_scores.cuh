// S = Q K^T of all rows with a warp's tokens of one block, as exponents of 2.
#pragma once
#include "kv/lane_tokens.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

// Codes of 4 bits in the upper halves of bytes, 16 times as large: no sign has to be extended.
__device__ __forceinline__ u32 lower_codes(u32 x) { return x << 4 & 0xf0f0f0f0u; }
__device__ __forceinline__ u32 upper_codes(u32 x) { return x & 0xf0f0f0f0u; }

// Adds the products of some steps of k, `first` on, to integers that `sum` holds the bits of. `k`
// is the lane's address in the warp's first unit.
template <DecodeSpec S, int Steps>
__device__ __forceinline__ void add_scores(typename DecodeShape<S>::Scores& sum,
                                           const Queries<S>& queries, u32 k, int first,
                                           int lane) {
  using H = DecodeShape<S>;
  constexpr int kChunkBytes = 2 * kMatrixBytes;  // 16 bytes of each token of a unit
#pragma unroll
  for (int i = 0; i < Steps; ++i) {
    const int step = first + i;
    u32 b0[H::kKeyTiles], b1[H::kKeyTiles];
    if constexpr (S.k_bits == 4) {
      u32 packed[H::kKeyTiles];
      ptx::ldmatrix_x4(packed, k + step * kChunkBytes);
#pragma unroll
      for (int j = 0; j < H::kKeyTiles; ++j) {
        b0[j] = lower_codes(packed[j]);
        b1[j] = upper_codes(packed[j]);
      }
    } else {
      ptx::ldmatrix_x4(b0, k + 2 * step * kChunkBytes);
      ptx::ldmatrix_x4(b1, k + (2 * step + 1) * kChunkBytes);
    }
#pragma unroll
    for (int tile = 0; tile < H::kTiles; ++tile) {
      const uint4 q = queries.q[tile][step][lane];
      const u32 a[4] = {q.x, H::kHalves == 1 ? 0 : q.y, q.z, H::kHalves == 1 ? 0 : q.w};
#pragma unroll
      for (int j = 0; j < H::kKeyTiles; ++j) {
        ptx::mma_s8_s8(sum[tile][j], a, b0[j], b1[j], sum[tile][j]);
      }
    }
  }
}

template <DecodeSpec S>
__device__ __forceinline__ void unit_scores(typename DecodeShape<S>::Scores& s,
                                            const Queries<S>& queries,
                                            const LaneTokens<S>& tokens, u32 k, int lane) {
  using H = DecodeShape<S>;
  constexpr int kGroups = Unit<S>::kKGroups;
  typename H::Scores total = {};
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    typename H::Scores sum = {};
    add_scores<S, H::kSteps / kGroups>(sum, queries, k, group * (H::kSteps / kGroups), lane);
#pragma unroll
    for (int unit = 0; unit < kWarpUnits; ++unit) {
      const float4 four = tokens.k_scale(unit, group);
      const float scale[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int tile = 0; tile < H::kTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < H::kHalves; ++half) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int product = __float_as_int(score_of<S>(sum[tile], unit, e, half));
            float& to = score_of<S>(total[tile], unit, e, half);
            to = __fmaf_rn(static_cast<float>(product), scale[e], to);
          }
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < H::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < H::kHalves; ++half) {
      const float scale = H::kKUnit * queries.scale[16 * tile + 8 * half + lane / 4];
#pragma unroll
      for (int i = 0; i < 2 * H::kKeyTiles; ++i) {
        float& to = s[tile][i / 2][2 * half + i % 2];
        to = total[tile][i / 2][2 * half + i % 2] * scale;
      }
    }
  }
}
