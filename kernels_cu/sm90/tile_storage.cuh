// Shared memory of a CTA: tiles that TMA fills, and the barriers that say when.
#pragma once
#include "attn/p_range.cuh"
#include "sm90/group_work.cuh"

// What differs from key to key, in slot order (cuattn/reference/layout.py), or from block to block.
template <WgmmaSpec S>
struct alignas(128) TokenScales : Deltas<S.groups, S.q_smooth ? S.block_kv : 0> {
  static constexpr int kKeys = TileShape<S>::kThreadK  ? S.block_kv / 16
                               : TileShape<S>::kTokenK ? S.block_kv
                               : TileShape<S>::kSorted ? kPlaceScales
                                                       : 0;
  static constexpr int kValues = TileShape<S>::kTokenV   ? S.block_kv
                                 : TileShape<S>::kSorted ? kPlaceScales
                                                         : 0;
  static constexpr int kOrder = TileShape<S>::kSorted ? kSortedBlock : 0;
  // Or of the four lanes of a row, for each 64 keys, or of their sections; or only k[0], of the
  // whole block.
  float k[kKeys ? kKeys : 4];
  float log2_v[kValues ? kValues : 4];  // V's scale rides in the exponent; or log2_v[0], the scale
  float inverse_v[kValues ? kValues : 4];
  u8 order[kOrder ? kOrder : 16];  // tokens by their places, if there is an order
  static constexpr u32 k_bytes = 4 * kKeys;
  static constexpr u32 v_bytes = 8 * kValues;
  static constexpr u32 delta_bytes = S.q_smooth ? 4 * S.block_kv : 0;  // of a warpgroup's rows
};

constexpr int kNoItem = -1;

// What is the same for all keys of an item.
template <WgmmaSpec S>
struct alignas(16) ItemConstants {
  using H = TileShape<S>;
  float row_scale[H::kScaledScores ? H::kRows : 4];          // softmax_scale * log2 e * sq
  float channel_scale[H::kChannelScale ? S.head_dim_v : 4];  // of V
  float channel_mean[S.head_dim_v];                          // of V, added to O
  Item<S> item;
};

// Of each warp, the floats of sm90/sorted_tokens.cuh.
template <int Warps>
struct WarpTokens {
  float tokens[Warps][kSortedBlock];
  __device__ __forceinline__ float* of_warp(int warp) { return tokens[warp]; }
};
template <>
struct WarpTokens<0> {
  __device__ __forceinline__ float* of_warp(int) { return nullptr; }
};

template <WgmmaSpec S>
struct alignas(1024) TileStorage
    : WarpTokens<kColumnStarts<S> && TileShape<S>::kSorted ? 4 * S.groups : 0> {
  using H = TileShape<S>;
  u8 k[S.stages][H::KTile::bytes];
  u8 v[S.stages][H::VTile::bytes];
  u8 q[S.q_buffers][S.groups][H::QTile::bytes];
  TokenScales<S> scales[S.stages];
  ItemConstants<S> constants[S.q_buffers];
  float4 rows[H::kParkedRows ? 2 * kWarpgroupSize * S.groups : 1];  // of RowState
  u64 full[S.stages];
  u64 empty[S.stages];
  u64 drawn[S.q_buffers];  // `item` says whose a buffer is
  u64 q_full[S.q_buffers];  // Q and constants are there
  u64 q_empty[S.q_buffers];
  int item[S.q_buffers];  // or kNoItem after the last one
};
