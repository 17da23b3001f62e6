// S = Q K^T of all rows with a warp's tokens of one block, as exponents of 2.
#pragma once
#include "kv/lane_tokens.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

// Codes of 4 bits in the upper halves of bytes, 16 times as large: no sign has to be extended.
__device__ __forceinline__ u32 lower_codes(u32 x) { return x << 4 & 0xf0f0f0f0u; }
__device__ __forceinline__ u32 upper_codes(u32 x) { return x & 0xf0f0f0f0u; }

// Lower halves of codes of 8 bits, two a byte, beside the upper ones; none if a unit has none.
__device__ __forceinline__ u32 with_lower(u32 codes, u32 lower, bool any) {
  return codes | (lower & (any ? 0x0f0f0f0fu : 0u));
}

// Adds the products of some steps of k, `first` on, to integers that `sum` holds the bits of. `q`
// is as in LanePlaces, `k` the lane's address in the warp's first unit, `Fine` whether there may be
// lower halves of nested codes: there, `lower` further, in units that have a bit of `fine`. `Few`
// is of blocks that a CTA may have one of: their loops are rolled, because code that runs once
// comes from memory.
template <DecodeSpec S, int Steps, bool Fine, bool Few>
__device__ __forceinline__ void add_scores(typename DecodeShape<S>::Scores& sum,
                                           const uint4* q, u32 k, u32 lower, u32 fine,
                                           int first) {
  using H = DecodeShape<S>;
  constexpr int kChunkBytes = 2 * kMatrixBytes;  // 16 bytes of each token of a unit
#pragma unroll(Few ? 1 : Steps)
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
      if constexpr (Fine) {
        ptx::ldmatrix_x4(packed, k + lower + step * kChunkBytes);
#pragma unroll
        for (int j = 0; j < H::kKeyTiles; ++j) {
          const bool any = fine >> j / 2 & 1;
          b0[j] = with_lower(b0[j], packed[j], any);
          b1[j] = with_lower(b1[j], packed[j] >> 4, any);
        }
      }
    } else {
      ptx::ldmatrix_x4(b0, k + 2 * step * kChunkBytes);
      ptx::ldmatrix_x4(b1, k + (2 * step + 1) * kChunkBytes);
    }
#pragma unroll
    for (int tile = 0; tile < H::kTiles; ++tile) {
      const uint4 x = q[(tile * H::kSteps + step) * kWarpSize];
      // Of a single half the other one is anything, and so are its products, which nobody reads.
      const u32 a[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < H::kKeyTiles; ++j) {
        ptx::mma_s8_s8(sum[tile][j], a, b0[j], b1[j], sum[tile][j]);
      }
    }
  }
}

template <DecodeSpec S, bool Few>
__device__ __forceinline__ void unit_scores(typename DecodeShape<S>::Scores& s,
                                            const Queries<S>& queries, const uint4* q,
                                            const LaneTokens<S>& tokens, u32 k, int lane) {
  using H = DecodeShape<S>;
  constexpr int kGroups = Unit<S>::kKGroups;
  typename H::Scores total = {};
#pragma unroll(Few ? 1 : kGroups)
  for (int group = 0; group < kGroups; ++group) {
    typename H::Scores sum = {};
    constexpr int kSteps = H::kSteps / kGroups;
    const int first = group * kSteps;
    if (S.nested && (Few || tokens.fine)) {
      add_scores<S, kSteps, S.nested, Few>(sum, q, k, tokens.lower, tokens.fine, first);
    } else {
      add_scores<S, kSteps, false, Few>(sum, q, k, 0, 0, first);
    }
#pragma unroll
    for (int unit = 0; unit < kWarpUnits; ++unit) {
      const float4 four = tokens.k_scale(unit, group);
      const float scale[4] = {four.x, four.y, four.z, four.w};
      float zero[4];
      if constexpr (S.nested) {
        const float4 zeros = tokens.k_zero(unit, group);
        zero[0] = zeros.x, zero[1] = zeros.y, zero[2] = zeros.z, zero[3] = zeros.w;
      }
#pragma unroll
      for (int tile = 0; tile < H::kTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < H::kHalves; ++half) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int product = __float_as_int(score_of<S>(sum[tile], unit, e, half));
            float& to = score_of<S>(total[tile], unit, e, half);
            if constexpr (S.nested) {  // first what does not wait for products
              to = __fmaf_rn(queries.code_sum[group][16 * tile + 8 * half + lane / 4], zero[e],
                             to);
            }
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
