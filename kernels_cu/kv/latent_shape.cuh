// Sizes that follow from a LatentDecodeSpec, and what a warp has of a block.
#pragma once
#include "kv/latent_unit.cuh"
#include "ptx/registers.cuh"

// As of a cache of one head whose V has 512 channels, for what is the same: the shares of CTAs, and
// parts of O. Rows are queries times all query heads.
constexpr DecodeSpec latent_share(Type input, int rows, int stages) {
  return {.input = input,
          .head_dim = kLatent,
          .channels = kLatent,
          .k_bits = 8,
          .v_bits = 8,
          .rows = rows,
          .stages = stages};
}
template <LatentDecodeSpec S>
constexpr DecodeSpec kLatentShare = latent_share(S.input, S.rows, S.stages);

constexpr int kLatentBlockUnits = kKvBlock / kLatentUnitTokens;
constexpr int kLatentWarps = 8;
constexpr int kLatentThreads = kLatentWarps * kWarpSize;

// A barrier of all warps.
__device__ __forceinline__ void meet_all() { __syncthreads(); }

template <LatentDecodeSpec S>
struct LatentShape {
  static constexpr int kTiles = S.rows / 16;
  // Warps have half of the rows if these are 64, or a quarter of their warpgroup's; of those a
  // share of the tokens for S = Q K^T, and of the channels for P V. Warpgroups have all rows for
  // that.
  static constexpr int kRowGroups = S.warpgroups ? 4 : kTiles == 4 ? 2 : 1;
  static constexpr int kShares = kLatentWarps / kRowGroups;
  static constexpr int kOwnTiles = kTiles / kRowGroups;
  static constexpr int kTokens = kKvBlock / kShares;  // of a warp
  static constexpr int kSixteens = kTokens / 16;
  static constexpr int kChunks = kLatent / 16 / kShares;  // of 16 channels
  static constexpr int kSteps = kLatent / 32;             // of k of Q K^T
  static constexpr int kRopeSteps = kRope / 16;
  static constexpr int kValueSteps = kKvBlock / 32;       // of k of P V
  static constexpr int kLaneTokens = 4 * kSixteens;

  using Scores = float[kOwnTiles][2 * kSixteens][4];
  // Of a chunk of V even channels come before odd ones: the lane has 4 t ... 4 t + 3 of 16.
  // Warpgroups have O transposed, in tiles of 4 chunks, of which each warp has one: the lane has
  // channels 2 g and 2 g + 1 of it, of rows 8 i + 2 t and 8 i + 2 t + 1.
  using Output = typename Choice<S.warpgroups, float[kChunks / 4][S.rows / 2],
                                 float[kOwnTiles][kChunks][2][4]>::type;

  // Calls f(tile, half) for each of the rows that a lane sees: g and g + 8 of every tile.
  template <class F>
  static __device__ __forceinline__ void for_rows(F f) {
#pragma unroll
    for (int tile = 0; tile < kOwnTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) f(tile, half);
    }
  }
};

// Which rows, tokens and channels a warp has.
template <LatentDecodeSpec S>
struct LatentWarp {
  using H = LatentShape<S>;
  int lane = threadIdx.x % kWarpSize;
  int share;
  int first_tile;

  __device__ __forceinline__ LatentWarp() {
    if constexpr (S.warpgroups) {
      const int warp = ptx::warp_number();
      share = warp / H::kRowGroups;
      first_tile = warp % H::kRowGroups;
    } else {
      share = threadIdx.x / kWarpSize % H::kShares;
      first_tile = threadIdx.x / kWarpSize / H::kShares * H::kOwnTiles;
    }
  }

  // Of the CTA's rows.
  __device__ __forceinline__ int row(int tile, int half) const {
    return 16 * (first_tile + tile) + 8 * half + lane / 4;
  }
  // Of a block, element e of the lane's four of some sixteen of the warp's.
  __device__ __forceinline__ int token(int sixteen, int e) const {
    return share * H::kTokens + 16 * sixteen + e / 2 * 8 + lane % 4 * 2 + e % 2;
  }
};
