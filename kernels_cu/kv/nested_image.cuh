// Nested codes on their way to a unit: the image has whole codes, of which units take halves.
#pragma once
#include "kv/byte_square.cuh"
#include "kv/nested_codes.cuh"

// As `put_keys` and `put_values`.
template <class Codes, class Rows, int HeadDim>
__device__ __forceinline__ void put_nested_keys(UnitImage<HeadDim>& to, const Rows& rows,
                                                const Codes& codes) {
  using Lanes = typename Rows::Lanes;
#pragma unroll
  for (int r = 0; r < Rows::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
      const int channel = Lanes::channel(c);
      store_words(to.at(channel / 16 * kUnitTokens + rows.token(r)) + channel % 16,
                  codes.word[r][c]);
    }
  }
}

template <class Codes, class Rows, int HeadDim>
__device__ __forceinline__ void put_nested_values(UnitImage<HeadDim>& to, const Rows& rows,
                                                  const Codes& codes) {
  using Lanes = typename Rows::Lanes;
  constexpr int kFours = ceil_div(Rows::kRows, 4);  // of rows
#pragma unroll
  for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
    for (int w = 0; w < Codes::kWords; ++w) {
      u32 turned[4][kFours];  // of each channel, four rows a word
#pragma unroll
      for (int k = 0; k < kFours; ++k) {
        const auto row = [&](int r) { return r < Rows::kRows ? codes.word[r][c][w] : 0u; };
        u32 of_channels[4];
        turn_bytes(of_channels, row(4 * k), row(4 * k + 1), row(4 * k + 2), row(4 * k + 3));
#pragma unroll
        for (int i = 0; i < 4; ++i) turned[i][k] = of_channels[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        u8* slots = to.at(Lanes::channel(c) + 4 * w + i) + rows.first_slot;
        if constexpr (Rows::kSingle) {
          *slots = static_cast<u8>(turned[i][0]);
        } else if constexpr (Rows::kRows == 2) {
          *reinterpret_cast<u16*>(slots) = static_cast<u16>(turned[i][0]);
        } else {
          store_words(slots, turned[i]);
        }
      }
    }
  }
}
