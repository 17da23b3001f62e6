// Codes of K or V of a unit on their way from rows of tokens to the unit, in shared memory: in the
// rows of 16 bytes of unit.cuh, but one code a byte whatever their bits.
#pragma once
#include "kv/unit_codes.cuh"
#include "quant/store.cuh"

// By the lanes of one warp, which synchronizes between writing and reading.
template <int HeadDim>
struct UnitImage {
  // After each 8 rows there is room for another: lanes write rows that are a multiple of 8 apart,
  // which would lie in the same banks.
  uint4 row[HeadDim / 8][9];

  __device__ __forceinline__ u8* at(int i) { return reinterpret_cast<u8*>(&row[i / 8][i % 8]); }

  // The 16 bytes of row i of the unit. Codes of 4 bits, or halves of nested ones, are in pairs that
  // are `Pair` rows apart.
  template <int Bits, int Pair, bool Upper>
  __device__ __forceinline__ uint4 get(int i) {
    if constexpr (Bits == 8) {
      return row[i / 8][i % 8];
    } else {
      const int lower = i / Pair * (2 * Pair) + i % Pair;
      const int upper = lower + Pair;
      const auto join = [](u32 x, u32 y) {
        return Upper ? (x >> 4 & 0x0f0f0f0fu) | (y & 0xf0f0f0f0u)
                     : (x & 0x0f0f0f0fu) | (y << 4 & 0xf0f0f0f0u);
      };
      const uint4 x = row[lower / 8][lower % 8];
      const uint4 y = row[upper / 8][upper % 8];
      return make_uint4(join(x.x, y.x), join(x.y, y.y), join(x.z, y.z), join(x.w, y.w));
    }
  }

  // One of these bytes.
  template <int Bits, int Pair, bool Upper>
  __device__ __forceinline__ u8 get_byte(int i, int byte) {
    if constexpr (Bits == 8) return at(i)[byte];
    const int lower = i / Pair * (2 * Pair) + i % Pair;
    const u8 x = at(lower)[byte];
    const u8 y = at(lower + Pair)[byte];
    return Upper ? x >> 4 | (y & 0xf0) : (x & 0x0f) | (y & 0x0f) << 4;
  }
};

// Rows of K are those of tokens, of blocks of 16 channels.
template <class Codes, class Rows, int HeadDim>
__device__ __forceinline__ void put_keys(UnitImage<HeadDim>& to, const Rows& rows,
                                         const Codes& codes) {
  using Lanes = typename Rows::Lanes;
#pragma unroll
  for (int r = 0; r < Rows::kRows; ++r) {
    float x[Lanes::kChunks][Lanes::kElements];
    rows.tile.visit(
        r, [&](int c, int i, float element) { x[c][i] = codes.steps(r, c, i, element); });
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
      u32 packed[Lanes::kElements / 4];
#pragma unroll
      for (int i = 0; i < Lanes::kElements / 4; ++i) {
        packed[i] = Codes::pack(x[c][4 * i], x[c][4 * i + 1], x[c][4 * i + 2], x[c][4 * i + 3]);
      }
      const int channel = Lanes::channel(c);
      store_words(to.at(channel / 16 * kUnitTokens + rows.token(r)) + channel % 16, packed);
    }
  }
}

// Rows of V are those of channels; a lane has some adjacent bytes of each of its channels.
template <class Codes, class Rows, int HeadDim>
__device__ __forceinline__ void put_values(UnitImage<HeadDim>& to, const Rows& rows,
                                           const Codes& codes) {
  using Lanes = typename Rows::Lanes;
  using Piece = Chunk<Rows::kType>;
  constexpr int kWords = ceil_div(Rows::kRows, 4);
#pragma unroll
  for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float x[4 * kWords][Piece::kPerWord] = {};
#pragma unroll
      for (int r = 0; r < Rows::kRows; ++r) {
        rows.tile.chunk[r][c].widen(x[r], w);
#pragma unroll
        for (int i = 0; i < Piece::kPerWord; ++i) {
          x[r][i] = codes.steps(r, c, w * Piece::kPerWord + i, x[r][i]);
        }
      }
#pragma unroll
      for (int i = 0; i < Piece::kPerWord; ++i) {
        u32 packed[kWords];
#pragma unroll
        for (int k = 0; k < kWords; ++k) {
          packed[k] = Codes::pack(x[4 * k][i], x[4 * k + 1][i], x[4 * k + 2][i], x[4 * k + 3][i]);
        }
        u8* slots = to.at(Lanes::channel(c) + w * Piece::kPerWord + i) + rows.first_slot;
        if constexpr (Rows::kSingle) {
          *slots = static_cast<u8>(packed[0]);
        } else if constexpr (Rows::kRows == 2) {
          *reinterpret_cast<u16*>(slots) = static_cast<u16>(packed[0]);
        } else {
          store_words(slots, packed);
        }
      }
    }
  }
}

template <int Bits, bool Upper = false, int HeadDim>
__device__ __forceinline__ void store_keys(u8* to, UnitImage<HeadDim>& from,
                                           const NewTokens& fresh) {
#pragma unroll
  for (int row = threadIdx.x % kWarpSize; row < HeadDim * Bits / 8; row += kWarpSize) {
    if (fresh.has(row % kUnitTokens)) {
      reinterpret_cast<uint4*>(to)[row] = from.template get<Bits, kUnitTokens, Upper>(row);
    }
  }
}

// The slot of a single new token.
template <int Bits, bool Upper = false, int HeadDim>
__device__ __forceinline__ void store_slot(u8* to, UnitImage<HeadDim>& from, int slot) {
#pragma unroll
  for (int row = threadIdx.x % kWarpSize; row < HeadDim * Bits / 8; row += kWarpSize) {
    to[row * kUnitTokens + slot] = from.template get_byte<Bits, 8, Upper>(row, slot);
  }
}

// Where a unit has older tokens, or room for others, only the bytes of the new ones are written.
template <int Bits, bool Upper = false, int HeadDim>
__device__ __forceinline__ void store_slots(u8* to, UnitImage<HeadDim>& from,
                                            const NewTokens& fresh) {
#pragma unroll
  for (int row = threadIdx.x % kWarpSize; row < HeadDim * Bits / 8; row += kWarpSize) {
    const uint4 codes = from.template get<Bits, 8, Upper>(row);
    if (fresh.all()) {
      reinterpret_cast<uint4*>(to)[row] = codes;
      continue;
    }
    const u32 word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int slot = 0; slot < kUnitTokens; ++slot) {
      if (fresh.has(token_in_slot(slot))) {
        to[row * kUnitTokens + slot] = static_cast<u8>(word[slot / 4] >> 8 * (slot % 4));
      }
    }
  }
}
