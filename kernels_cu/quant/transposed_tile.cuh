// Codes of V on their way from token rows to channel rows, in shared memory.
#pragma once
#include "quant/quantize_spec.cuh"
#include "quant/row_tile.cuh"

// Rows of V that a lane has at a time: fewer than elsewhere where a CTA has one block only.
template <QuantizeSpec S>
constexpr int kValueRows =
    S.v_scope == Scope::sorted
        ? min_of(RowLanes<S.input, S.head_dim_v>::kRows,
                 max_of(S.v_tile * RowLanes<S.input, S.head_dim_v>::kLanes / S.num_threads, 4))
        : RowLanes<S.input, S.head_dim_v>::kRows;

template <QuantizeSpec S>
struct TransposedTile {
  static constexpr bool kUsed = is_code(S.v);
  static constexpr int kWords = S.v_tile / 4;     // of a channel's row
  static constexpr int kColumns = S.v_tile / 16;  // of 16 bytes
  using Lanes = RowLanes<S.input, S.head_dim_v>;
  static constexpr int kPut = kValueRows<S> / 4;  // adjacent words of a channel in one lane
  // Rows are a multiple of 128 bytes, so a column of words lies in one bank. A lane puts its words
  // into all its channels in turn, while the lanes beside it do so kElements channels further:
  // the words of a row are permuted so that 32 / kPut such lanes meet all banks.
  static constexpr int kSpread = max_of(kPut, Lanes::kWarpRows);
  static_assert(!kUsed || (S.v_tile % kTokenPad == 0 && kValueRows<S> % 4 == 0 && kPut <= 2));

  u32 word[kUsed ? S.head_dim_v : 1][kUsed ? kWords : 4];

  static __device__ __forceinline__ int permute(u32 channel) {
    return channel / Lanes::kElements * kSpread & 31;
  }

  // Where words of the first channel of a chunk lie; those of the others follow, kWords apart.
  __device__ __forceinline__ u32* chunk(int channel, int first) {
    return &word[channel][first ^ permute(channel)];
  }
  static __device__ __forceinline__ void put(u32* to, const u32 (&codes)[kPut]) {
    if constexpr (kPut == 1) {
      *to = codes[0];
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2(codes[0], codes[1]);
    }
  }

  __device__ __forceinline__ uint4 get(int channel, int column) const {
    const int swap = permute(channel);
    uint4 x = reinterpret_cast<const uint4*>(word[channel])[column ^ swap / 4];
    if constexpr (kSpread < 2) {
      if (swap & 1) x = make_uint4(x.y, x.x, x.w, x.z);
    }
    if constexpr (kSpread < 4) {
      if (swap & 2) x = make_uint4(x.z, x.w, x.x, x.y);
    }
    return x;
  }
};
