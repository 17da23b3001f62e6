// Sizes that follow from an AttentionSpec, shared by the steps of the loop.
#pragma once
#include "attn/p_range.cuh"
#include "layout.cuh"
#include "spec.cuh"
#include "tile/shared_tile.cuh"

template <AttentionSpec S>
struct Shape {
  static constexpr int kRowTiles = S.row_tiles;
  static constexpr int kWarpRows = 16 * S.row_tiles;
  static constexpr int kRows = kWarpRows * S.num_warps;
  static constexpr int kKeyTiles = S.block_kv / 8;             // MMA columns of S
  static constexpr int kDimTiles = S.head_dim_v / 8;           // MMA columns of O
  static constexpr int kQkBytes = row_bytes(S.qk, S.head_dim);
  static constexpr int kScoreSteps = kQkBytes / 32;                     // steps of k of Q K^T
  static constexpr int kValueSteps = S.block_kv * bytes_of(S.pv) / 32;  // steps of k of P V

  static constexpr bool kIntegerScores = is_integer(S.qk);
  // Sums of so many products that float32 has no room for them beside kMagic: converted instead.
  static constexpr bool kWideScores = kIntegerScores && S.head_dim > 256;
  static constexpr float kScoreStart = kIntegerScores && !kWideScores ? kMagic : 0.0f;
  static constexpr bool kScaledScores = is_code(S.qk);
  static constexpr bool kIntegerValues = S.pv == Type::int8;
  static constexpr bool kScaledValues = is_code(S.pv);
  // K's scales differ among the keys of a block, so that scores are exponents before their maxima
  // are taken.
  static constexpr bool kGroupK = kIntegerScores && S.k_scope == Scope::group;
  static constexpr bool kThreadK = kIntegerScores && S.k_scope == Scope::thread;
  static constexpr bool kTokenK =
      kGroupK || kThreadK || (kIntegerScores && S.k_scope == Scope::token);
  // The same of sections of lanes, and so do V's.
  static constexpr bool kSorted = kIntegerScores && S.k_scope == Scope::sorted;
  static constexpr bool kBlockK = kScaledScores && !kTokenK && !kSorted;
  static constexpr int kGroups = kGroupK ? S.head_dim / S.qk_group : 1;
  static constexpr int kKeyScales = kSorted    ? kPlaceScales
                                    : !kTokenK ? 1
                                    : kThreadK ? S.block_kv / 16
                                               : kGroups * S.block_kv;  // of a block of keys
  static constexpr bool kTokenV = kIntegerValues && S.v_scope == Scope::token;
  static constexpr bool kBlockV = kScaledValues && S.v_scope == Scope::block;
  static constexpr bool kChannelV = kScaledValues && S.v_scope == Scope::channel;
  static_assert(kTokenK || (!kTokenV && !S.q_smooth), "what keys add joins scales of keys");
  static_assert(kSorted == (kIntegerValues && S.v_scope == Scope::sorted));
  static_assert(!kSorted || (S.p_range == PRange::block && S.block_kv == kSortedBlock));
  static_assert(!kGroupK || (S.q_in_registers && kQkBytes % 32 == 0));

  using QTile = SharedTile<kRows, kQkBytes>;
  using KTile = SharedTile<S.block_kv, kQkBytes>;
  // V in 8 bits is stored transposed: a row is a channel. Otherwise a row is a token.
  using VTile = SharedTile<kScaledValues ? S.head_dim_v : S.block_kv,
                           (kScaledValues ? S.block_kv : S.head_dim_v) * bytes_of(S.pv)>;

  // Parts of a block whose keys a lane multiplies by one number.
  static constexpr int kParts = kSorted ? kSections : 1;
  static __device__ constexpr int part_of(int tile) { return kSorted ? section_of(2 * tile) : 0; }

  // What a lane holds of one tile of 16 rows.
  using Scores = float[kKeyTiles][4];
  using Probabilities = u32[kTerms<S> * kValueSteps][4];
  using Output = float[kDimTiles][4];
};
