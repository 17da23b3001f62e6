// Sizes that follow from a LatentDecodeSpec, and what a CTA has in shared memory.
#pragma once
#include "kv/latent_unit.cuh"

// As of a cache of one head whose V has 512 channels, for what is the same: the shares of CTAs, and
// parts of O. Rows are queries times all query heads.
template <LatentDecodeSpec S>
constexpr DecodeSpec kLatentShare = {.input = S.input,
                                     .head_dim = kLatent,
                                     .channels = kLatent,
                                     .k_bits = 8,
                                     .v_bits = 8,
                                     .rows = S.rows,
                                     .stages = S.stages};

constexpr int kLatentBlockUnits = kKvBlock / kLatentUnitTokens;
constexpr int kLatentWarps = 8;
constexpr int kLatentThreads = kLatentWarps * kWarpSize;

// A barrier of all warps.
__device__ __forceinline__ void meet_all() { __syncthreads(); }

template <LatentDecodeSpec S>
struct LatentShape {
  static constexpr int kTiles = S.rows / 16;
  // Warps have half of the rows if these are 64; of those a share of the tokens for S = Q K^T, and
  // of the channels for P V.
  static constexpr int kRowGroups = kTiles == 4 ? 2 : 1;
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
  using Output = float[kOwnTiles][kChunks][2][4];

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

template <LatentDecodeSpec S>
struct alignas(128) LatentStorage {
  using H = LatentShape<S>;
  u8 units[S.stages][kLatentBlockUnits][kLatentUnitBytes];
  uint4 q[H::kTiles][H::kSteps][kWarpSize];           // A operands, by lane
  uint4 q_rope[H::kTiles][H::kRopeSteps][kWarpSize];  // likewise
  uint4 p[H::kTiles][H::kValueSteps][kWarpSize];      // likewise
  f32 maxima[S.rows][H::kShares];                     // of the tokens of each share
  f32 sums[S.rows][H::kShares];                       // likewise
  f32 scale[S.rows];                                  // of Q
  u64 full[S.stages];
  u64 empty[S.stages];
  u32 arrived[2];  // parts that were there before the CTA's first and its last
};

// Which rows, tokens and channels a warp has.
template <LatentDecodeSpec S>
struct LatentWarp {
  using H = LatentShape<S>;
  int lane = threadIdx.x % kWarpSize;
  int share = threadIdx.x / kWarpSize % H::kShares;
  int first_tile = threadIdx.x / kWarpSize / H::kShares * H::kOwnTiles;

  // Of the CTA's rows.
  __device__ __forceinline__ int row(int tile, int half) const {
    return 16 * (first_tile + tile) + 8 * half + lane / 4;
  }
  // Of a block, element e of the lane's four of some sixteen of the warp's.
  __device__ __forceinline__ int token(int sixteen, int e) const {
    return share * H::kTokens + 16 * sixteen + e / 2 * 8 + lane % 4 * 2 + e % 2;
  }
};
