// O += P V of one block: all rows, the warp's channels.
#pragma once
#include "kv/block_softmax.cuh"
#include "kv/unit_scores.cuh"

// V's matrices in a unit that hold the MMA columns of a warp.
template <DecodeSpec S>
struct ValueMatrices {
  static constexpr int kColumns = DecodeShape<S>::kDimTiles;
  static constexpr int kOfMatrix = S.v_bits == 4 ? 2 : 1;
  // A matrix of codes of 4 bits is two columns, mostly the warp's both.
  static constexpr bool kPairs = kOfMatrix == 2 && kColumns % 2 == 0;

  // Where the first one begins in the unit.
  static __device__ __forceinline__ int first(int warp) {
    return Unit<S>::kV + warp * kColumns / kOfMatrix * kMatrixBytes;
  }
  // From there to that of one of the columns.
  static __device__ __forceinline__ int from_first(int warp, int column) {
    if constexpr (kColumns % kOfMatrix == 0) return column / kOfMatrix * kMatrixBytes;
    const int matrix = (warp * kColumns + column) / kOfMatrix;
    return (matrix - warp * kColumns / kOfMatrix) * kMatrixBytes;
  }
};

// `v` is the lane's address of the warp's first matrix of V in the first unit of the block; `Fine`,
// `lower` and `fine` as those of `add_scores`, but of all units of the block.
template <DecodeSpec S, bool Fine>
__device__ __forceinline__ void add_unit_values(typename DecodeShape<S>::Output& o,
                                                const LanePlaces<S>& at,
                                                const BlockSoftmax<S>& softmax, u32 v,
                                                u32 lower, u32 fine, int warp) {
  using H = DecodeShape<S>;
  // Of several groups each has its own P, which is then read for every MMA column.
  constexpr bool kHold = Unit<S>::kVGroups == 1 && H::kTiles <= 2;
  u32 held[kHold ? H::kTiles : 1][H::kValueSteps][4];
  const auto read = [&](u32(&a)[4], int group, int tile, int step) {
    const uint4 p = at.p[((group * H::kTiles + tile) * H::kValueSteps + step) * kWarpSize];
    a[0] = p.x;
    a[1] = p.y;
    a[2] = p.z;
    a[3] = p.w;
  };
  if constexpr (kHold) {
#pragma unroll
    for (int i = 0; i < H::kTiles * H::kValueSteps; ++i) {
      read(held[i / H::kValueSteps][i % H::kValueSteps], 0, i / H::kValueSteps,
           i % H::kValueSteps);
    }
  }
  using Matrices = ValueMatrices<S>;
  constexpr bool kPairs = Matrices::kPairs;
  u32 matrix[H::kValueSteps / 2][4];  // of two steps of k: the words of both products
  u32 rest[Fine ? H::kValueSteps / 2 : 1][4];  // likewise of lower halves
#pragma unroll
  for (int i = 0; i < H::kDimTiles; ++i) {
    const int column = warp * H::kDimTiles + i;
    const int group = H::group_of(column);
    const bool is_upper = kPairs ? i % 2 : column % 2;
    u32 b[H::kValueSteps / 2][4];
#pragma unroll
    for (int pair = 0; pair < H::kValueSteps / 2; ++pair) {
      if (!kPairs || i % 2 == 0) {
        const u32 from = v + pair * 4 * Unit<S>::kBytes + Matrices::from_first(warp, i);
        ptx::ldmatrix_x4(matrix[pair], from);
        if constexpr (Fine) ptx::ldmatrix_x4(rest[pair], from + lower);
      }
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const u32 word = matrix[pair][w];
        b[pair][w] = S.v_bits == 8 ? word : is_upper ? upper_codes(word) : lower_codes(word);
        if constexpr (Fine) {
          const u32 halves = rest[pair][w];
          b[pair][w] = with_lower(b[pair][w], is_upper ? halves >> 4 : halves,
                                  fine >> (4 * pair + w) & 1);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < H::kTiles; ++tile) {
      float sum[4] = {};  // the bits of integers
#pragma unroll
      for (int step = 0; step < H::kValueSteps; ++step) {
        u32 a[4];
        if constexpr (kHold) {
#pragma unroll
          for (int w = 0; w < 4; ++w) a[w] = held[tile][step][w];
        } else {
          read(a, group, tile, step);
        }
        ptx::mma_u8_s8(sum, a, b[step / 2][step % 2 * 2], b[step / 2][step % 2 * 2 + 1], sum);
      }
#pragma unroll
      for (int e = 0; e < 2 * H::kHalves; ++e) {
        float weight = softmax.weight[0][tile][e / 2];
#pragma unroll
        for (int g = 1; g < Unit<S>::kVGroups; ++g) {
          weight = group == g ? softmax.weight[g][tile][e / 2] : weight;
        }
        float& x = o[tile][i][e];
        x = __fmaf_rn(static_cast<float>(__float_as_int(sum[e])), weight * H::kVUnit,
                      x * softmax.shrink[tile][e / 2]);
      }
    }
  }
}
