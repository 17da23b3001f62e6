// What a CTA that attends to a latent cache has in shared memory.
#pragma once
#include "kv/arrivals.cuh"
#include "kv/latent_shape.cuh"
#include "tile/turns.cuh"

// Operands of rows, of whole bytes. For mma.sync as left operands, by lane.
template <LatentDecodeSpec S, bool Warpgroups = S.warpgroups>
struct LatentOperand {
  template <int Steps>
  struct Of {
    uint4 lanes[LatentShape<S>::kTiles][Steps][kWarpSize];

    // Bytes `byte` and three more of a row, from a multiple of 4 on.
    __device__ __forceinline__ u32& word(int row, int byte) {
      uint4& four = lanes[row / 16][byte / 32][row % 8 * 4 + byte / 4 % 4];
      return reinterpret_cast<u32*>(&four)[byte / 16 % 2 * 2 + row / 8 % 2];
    }
  };
};

// For warpgroups as matrices of 8 rows and 16 bytes, as units have tokens.
template <LatentDecodeSpec S>
struct LatentOperand<S, true> {
  static constexpr int kChunk = 16 * S.rows;  // bytes from 16 of a row's to the next 16

  template <int Steps>
  struct Of {
    u8 bytes[2 * Steps][S.rows][16];

    __device__ __forceinline__ u32& word(int row, int byte) {
      return *reinterpret_cast<u32*>(&bytes[byte / 16][row][byte % 16]);
    }
  };
};

// What of a CTA's blocks is to be copied next, and where to.
template <LatentDecodeSpec S>
struct LatentCopyPlace {
  BlockCursor at;
  int left;  // blocks
  Turn<S.stages> turn;
};

// What warpgroups have besides, some of it for want of registers.
template <LatentDecodeSpec S, bool Warpgroups = S.warpgroups>
struct LatentExtras {};
template <LatentDecodeSpec S>
struct LatentExtras<S, true> {
  void* o_row[S.rows];                                // where a row's O goes at the end, or null
  f32 log2[kLatentBlockUnits][kLatentUnitTokens];     // of K's scales, in their slots
  f32 inverse[kLatentBlockUnits][kLatentUnitTokens];  // likewise
  f32 shrink[S.rows];                                 // as LatentSoftmax has them; at the end of
                                                      // a head what O is multiplied by
  f32 weight[S.rows];
  LatentCopyPlace<S> copy_place;          // of the warp that copies
  Partition<kLatentShare<S>> partition;
  HeadShare head;                         // the one that all have at the time
  Arrivals arrivals;                      // of thread 0, for whoever merges
  bool has_head;
};

template <LatentDecodeSpec S>
struct alignas(128) LatentStorage : LatentExtras<S> {
  using H = LatentShape<S>;
  using Operand = LatentOperand<S>;
  alignas(128) u8 units[S.stages][kLatentBlockUnits][kLatentUnitBytes];
  typename Operand::template Of<H::kSteps> q;
  typename Operand::template Of<H::kRopeSteps> q_rope;
  typename Operand::template Of<H::kValueSteps> p;
  f32 maxima[S.rows][H::kShares];                     // of the tokens of each share
  f32 sums[S.rows][H::kShares];                       // likewise
  f32 scale[S.rows];                                  // of Q
  u64 full[S.stages];
  u64 empty[S.stages];
  u32 arrived[2];  // parts that were there before the CTA's first and its last
};
