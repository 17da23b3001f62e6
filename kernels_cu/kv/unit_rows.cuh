// Tokens of a unit as they come from the caller's array: those of K or of V in one warp.
#pragma once
#include "kv/unit.cuh"
#include "ptx/registers.cuh"
#include "quant/row_tile.cuh"

// Which tokens of a unit are appended, and which rows of the caller's array they are.
struct NewTokens {
  int first;  // row of the unit's token 0; negative if that is an older token
  int count;  // rows of the sequence

  __device__ __forceinline__ bool has(int token) const {
    return first + token >= 0 && first + token < count;
  }
  __device__ __forceinline__ bool any() const { return max_of(first, 0) < count; }
  __device__ __forceinline__ bool all() const { return has(0) && has(kUnitTokens - 1); }
};

// Channels that pad a row may repeat so many, its last ones.
constexpr int kPadStep = 16;

// A lane has rows in adjacent slots, which is how it has adjacent bytes of V's channels. Or, if
// there is a `Single` new token, that one, in all lanes that would have others: a step of a loop of
// tokens takes as long as its instructions, of which the other rows had most.
template <Type In, int HeadDim, bool Single>
struct UnitRows {
  using Lanes = RowLanes<In, HeadDim>;
  static constexpr Type kType = In;
  static constexpr bool kSingle = Single;
  static constexpr int kRows = Single ? 1 : kUnitTokens / Lanes::kWarpRows;
  using Tile = RowTile<In, HeadDim, kRows>;
  using Vector = typename Tile::Vector;

  int first_slot = Single ? 0 : Lanes::group() % Lanes::kWarpRows * kRows;
  int first_token = token_in_slot(first_slot);
  Tile tile;

  // Says which token of its unit a single one is, after it has been loaded as token 0.
  __device__ __forceinline__ void place(int token) {
    first_token = token;
    first_slot = slot_of(token);
  }

  __device__ __forceinline__ int slot(int r) const { return first_slot + r; }
  __device__ __forceinline__ int token(int r) const { return first_token + token_in_slot(r); }

  // Row 0 of the array begins at `rows`, others every `stride` bytes. Tokens that are not new are
  // zeros, and so are channels beyond those of the array, `Channels`; or they repeat the last ones.
  template <bool Aligned, int Channels>
  __device__ __forceinline__ void load(const char* rows, i64 stride, const NewTokens& fresh,
                                       bool repeat) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const char* row = rows + (fresh.first + token(r)) * stride;
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        const int channel = Lanes::channel(c);
        const bool beyond = Channels < HeadDim && channel >= Channels;
        const int from = beyond ? Channels - kPadStep + channel % kPadStep : channel;
        tile.chunk[r][c].template load<Aligned, true>(row + from * bytes_of(In),
                                                      fresh.has(token(r)) && (!beyond || repeat));
      }
    }
  }

  // Between taking maxima and making codes. The compiler would else keep what it has made of the
  // tile, which takes twice the registers, rather than make it again.
  __device__ __forceinline__ void disguise() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
        for (u32& word : tile.chunk[r][c].word) word = ptx::opaque(word);
      }
    }
  }
};
