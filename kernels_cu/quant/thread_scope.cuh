// The scopes of SageAttention2: tokens that one thread of an mma.m16n8 sees.
#pragma once

// Rows of Q that are 8 apart in every 32; pairs of keys that are 8 apart in every 64.
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
