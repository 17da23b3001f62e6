// What the quantizing and the attention kernels agree on.
#pragma once

// INT8 codes of V, and scales per token of K and V, come in whole blocks of this many tokens, so
// that no copy of a block reads past the end. What pads them is finite.
constexpr int kTokenPad = 128;

// Rows of Q that have one mean, if Q is smoothed, and one scale, if that is of a block.
constexpr int kQBlock = 128;

// Added to the logarithms of V's scales or, where there are none, to what smoothing took from the
// scores, so that exponents of scores are rarely negative and their bits compare as integers. It
// leaves the row sum again with lse.
constexpr float kLog2Bias = 64.0f;

// Tokens of V's codes, and scales per token of K and V, are permuted inside every 16: slot 4t + e
// holds token 2t + e if e < 2 and 8 + 2t + e - 2 otherwise. So the four keys that lane t of a row
// sees of two adjacent MMA tiles of S are neighbours.
__host__ __device__ constexpr int slot_of(int token) {
  return (token & ~15) | (token & 6) << 1 | (token & 8) >> 2 | (token & 1);
}

// The other way.
__host__ __device__ constexpr int token_in_slot(int slot) {
  return (slot & ~15) | (slot & 12) >> 1 | (slot & 2) << 2 | (slot & 1);
}

// Sorted keys. Softmax does not see the order of the keys of a block, so the quantizer chooses one.
// Lane t of a row sees columns 8 i + 2 t + e of S; its 32 of a block of 128 are the places
// 32 t + 2 i + e. Tokens with like largest elements of V are in the same section of all lanes: the
// 8 smallest in one of two places a lane, the others in sections of 12, 14 and, the 16 largest, 4.
// A section of a lane has a scale of K and one of V.
constexpr int kSortedBlock = 128;
constexpr int kLanePlaces = 32;
constexpr int kSections = 4;
constexpr int kPlaceScales = 4 * kSections;  // of a block: those of lane 0, of lane 1, ...

__host__ __device__ constexpr int section_of(int place) {
  const int of_lane = place % kLanePlaces;
  return of_lane < 2 ? 0 : of_lane < 14 ? 1 : of_lane < 28 ? 2 : 3;
}
// Of a tile of 8 columns, in which a lane has two places.
__host__ __device__ constexpr bool begins_section(int tile) {
  return tile == 0 || section_of(2 * tile) != section_of(2 * tile - 1);
}
__host__ __device__ constexpr bool ends_section(int tile) {
  return (2 * tile + 2) % kLanePlaces == 0 || section_of(2 * tile) != section_of(2 * tile + 2);
}
__host__ __device__ constexpr int column_of(int place) {
  return place % kLanePlaces / 2 * 8 + place / kLanePlaces * 2 + place % 2;
}
__host__ __device__ constexpr int place_of(int column) {
  return column % 8 / 2 * kLanePlaces + column / 8 * 2 + column % 2;
}

// The scopes of SageAttention2: tokens that one thread of an mma.m16n8 sees, which are rows of Q
// that are 8 apart in every 32, or pairs of keys that are 8 apart in every 64.
template <bool Keys>
struct ThreadScope {
  static constexpr int kTile = Keys ? 64 : 32;
  static constexpr int kScopes = Keys ? 4 : 8;  // of a tile
  static constexpr int kTokens = kTile / kScopes;
  static constexpr int kNeighbours = Keys ? 2 : 1;

  static __device__ constexpr int of(int token) {
    return token / kTile * kScopes + token / kNeighbours % kScopes;
  }
  // Whether a token is the first of its scope.
  static __device__ constexpr bool is_first(int token) {
    return token % kTile < kScopes * kNeighbours && token % kNeighbours == 0;
  }
};
