// Sizes that follow from a WgmmaSpec, shared by the steps of the loop.
#pragma once
#include "attn/p_range.cuh"
#include "layout.cuh"
#include "sm90/wgmma_spec.cuh"

constexpr int kGroupRows = 64;  // of Q, S and O in one warpgroup

// Rows in shared memory, in panels of 128 bytes side by side (64 if a row has no more). TMA
// permutes 16-byte chunks within a panel and fills with zeros what it has beyond the row.
template <int Rows, int RowBytes>
struct Panels {
  static constexpr int rows = Rows;
  static constexpr int pitch = RowBytes <= 64 ? 64 : 128;  // bytes from row to row of a panel
  static constexpr int count = ceil_div(RowBytes, pitch);
  static constexpr int panel_bytes = Rows * pitch;
  static constexpr int bytes = count * panel_bytes;

  // Where a step of k, 32 bytes of every row, begins.
  static __host__ __device__ constexpr int step(int k) {
    return k * 32 / pitch * panel_bytes + k * 32 % pitch;
  }
};

template <WgmmaSpec S>
struct TileShape {
  static constexpr int kRows = kGroupRows * S.groups;
  static constexpr int kKeyTiles = S.block_kv / 8;                      // MMA columns of S
  static constexpr int kScoreSteps = S.head_dim * bytes_of(S.qk) / 32;  // steps of k of Q K^T
  static constexpr int kValueSteps = S.block_kv * bytes_of(S.pv) / 32;  // steps of k of P V
  static constexpr int kSlices = S.head_dim_v / S.value_slice;

  static constexpr bool kIntegerScores = S.qk == Type::int8;
  static constexpr bool kScaledScores = bytes_of(S.qk) == 1;
  static constexpr bool kIntegerValues = S.pv == Type::int8;
  static constexpr bool kScaledValues = bytes_of(S.pv) == 1;
  // K's scales differ among the keys of a block, so that scores are exponents before their maxima
  // are taken.
  static constexpr bool kThreadK = kIntegerScores && S.k_scope == Scope::thread;
  static constexpr bool kTokenK = kThreadK || (kIntegerScores && S.k_scope == Scope::token);
  // The same of sections of lanes, and so do V's, which takes few instructions.
  static constexpr bool kSorted = kIntegerScores && S.k_scope == Scope::sorted;
  static constexpr bool kTokenV = kIntegerValues && S.v_scope == Scope::token;
  static constexpr bool kBlockV = kScaledValues && S.v_scope == Scope::block;
  static constexpr bool kChannelScale = kScaledValues && S.v_scope == Scope::channel;
  // P V of a block has accumulators of its own and is added to a float O; else O accumulates it.
  static constexpr bool kFlush = kScaledValues && !S.integer_o;
  // Registers of what rows need at the ends of a block only are better spent on something else.
  static constexpr bool kParkedRows = S.p_range == PRange::block;
  static_assert(kTokenK || (!kTokenV && !S.q_smooth), "what keys add joins scales of keys");
  static_assert(kSorted == (kIntegerValues && S.v_scope == Scope::sorted));
  static_assert(!kSorted || (S.p_range == PRange::block && S.block_kv == kSortedBlock));
  static_assert(!S.integer_o || (!kBlockV && kTerms<S> == 1));
  static_assert(!S.integer_o || (kIntegerValues && S.p_range != PRange::block));
  // That a weight is all of the factor of P V, and that |P V| < 2^22, which is so of 128 keys.
  static_assert(!S.float_sums || (S.p_range == PRange::block && !kBlockV && kTerms<S> == 1));
  static_assert(!S.float_sums || (kIntegerValues && S.order != Order::interleaved));
  static_assert(kSlices * S.value_slice == S.head_dim_v);
  static_assert(S.block_kv == 64 || S.block_kv == 128);

  using QTile = Panels<kGroupRows, S.head_dim * bytes_of(S.qk)>;
  using KTile = Panels<S.block_kv, S.head_dim * bytes_of(S.qk)>;
  // 8-bit V is stored transposed: a row is a channel. Otherwise a row is a token.
  using VTile = Panels<kScaledValues ? S.head_dim_v : S.block_kv,
                       (kScaledValues ? S.block_kv : S.head_dim_v) * bytes_of(S.pv)>;

  // Parts of a block whose keys a lane multiplies by one number.
  static constexpr int kParts = kSorted ? kSections : 1;
  static __device__ constexpr int part_of(int tile) { return kSorted ? section_of(2 * tile) : 0; }

  // What a lane holds of the 16 rows of its warp.
  static constexpr int kScores = S.block_kv / 2;
  static constexpr int kProbabilities = kValueSteps * 4;  // of a term of P
  static constexpr int kSlice = S.value_slice / 2;
  static constexpr int kOutput = S.head_dim_v / 2;
};
