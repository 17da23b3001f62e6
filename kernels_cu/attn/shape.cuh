// Sizes that follow from an AttentionSpec, shared by the steps of the loop.
#pragma once
#include "spec.cuh"
#include "tile/shared_tile.cuh"

template <AttentionSpec S>
struct Shape {
  static constexpr int kRowTiles = S.row_tiles;
  static constexpr int kWarpRows = 16 * S.row_tiles;
  static constexpr int kRows = kWarpRows * S.num_warps;
  static constexpr int kKeyTiles = S.block_kv / 8;             // MMA columns of S
  static constexpr int kDimTiles = S.head_dim / 8;             // MMA columns of O
  static constexpr int kScoreSteps = S.head_dim * bytes_of(S.qk) / 32;  // steps of k of Q K^T
  static constexpr int kValueSteps = S.block_kv * bytes_of(S.pv) / 32;  // steps of k of P V

  static constexpr bool kIntegerScores = S.qk == Type::int8;
  static constexpr bool kIntegerValues = S.pv == Type::int8;
  static constexpr bool kTokenK = kIntegerScores && S.k_scope == Scope::token;
  static constexpr bool kTokenV = kIntegerValues && S.v_scope == Scope::token;
  static_assert(kTokenK || !kTokenV, "a V scale per token needs a K scale per token");

  using QTile = SharedTile<kRows, S.head_dim * bytes_of(S.qk)>;
  using KTile = SharedTile<S.block_kv, S.head_dim * bytes_of(S.qk)>;
  // Integer V is stored transposed: a row is a channel. Otherwise a row is a token.
  using VTile = SharedTile<kIntegerValues ? S.head_dim : S.block_kv,
                           (kIntegerValues ? S.block_kv : S.head_dim) * bytes_of(S.pv)>;

  // What a lane holds of one tile of 16 rows.
  using Scores = float[kKeyTiles][4];
  using Probabilities = u32[kValueSteps][4];
  using Output = float[kDimTiles][4];
};
