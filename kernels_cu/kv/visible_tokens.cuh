// Which tokens of a block the rows of a lane see, g and g + 8 of every tile.
#pragma once
#include "kv/lane_tokens.cuh"
#include "kv/partition.cuh"
#include "kv/user_scores.cuh"

// Whether what rows see is noted, token by token.
template <DecodeSpec S>
constexpr bool kNotes = kHas<S.attn_mask> || kAsks<S>;

// Whether rows see other tokens than the first ones.
template <DecodeSpec S>
constexpr bool kHides = S.window || kNotes<S>;

template <DecodeSpec S>
struct VisibleTokens {
  using H = DecodeShape<S>;
  using Scores = typename H::Scores;
  int count[H::kTiles][H::kHalves];  // of tokens that a row sees by its place: the first ones
  int begin[H::kTiles][H::kHalves];  // or, of S.window, those from here on
  int first_column;                  // the token of a mask's first column; of none, behind all
  UserScores<S> user;
  u32 noted;                         // of kNotes: a bit for each row and token of the lane

  __device__ __forceinline__ void start(const DecodeParams& p, const BlockCursor& at, int lane) {
    H::for_rows([&](int tile, int half) {
      const RowPlace place = RowPlace::of<S>(p, at.head, 16 * tile + 8 * half + lane / 4);
      count[tile][half] = place.template sees<S>(p, at.length);
      if constexpr (S.window) {
        begin[tile][half] = max_of(place.own(p, at.length) - p.window_left, 0);
        count[tile][half] = max_of(count[tile][half] - begin[tile][half], 0);
      }
    });
    if constexpr (kNotes<S>) first_column = at.length - p.mask_columns;
    if constexpr (kAsks<S>) user.start(p, at);
  }

  // Notes what a mask and expressions hide of a block whose first token of the warp is number
  // `first`; adds a mask of floats to `s`, and makes of that what a score_mod does.
  __device__ __forceinline__ void note(Scores& s, const DecodeParams& p, const Queries<S>& queries,
                                       int first, int lane) {
    noted = 0;
    H::for_rows([&](int tile, int half) {
#pragma unroll
      for (int i = 0; i < kLaneTokens; ++i) {
        const int row = 16 * tile + 8 * half + lane / 4;
        const int column = token_at(first, i, lane) - first_column;
        float& x = score_of<S>(s[tile], i / 4, i % 4, half);
        bool sees = sees_place(tile, half, first, i, lane) &&
                    (column < 0 || allows(x, queries, row, column * p.attn_mask_stride_column));
        if constexpr (kAsks<S>) {
          sees = sees && user.sees(x, p, queries, row, token_at(first, i, lane));
        }
        noted |= static_cast<u32>(sees) << bit_of(tile, half, i);
      }
    });
  }

  // Whether a row sees token i of the lane, of a block whose first token of the warp is `first`; of
  // a `Simple` block every row sees all.
  template <bool Simple>
  __device__ __forceinline__ bool sees(int tile, int half, int first, int i, int lane) const {
    if constexpr (Simple) return true;
    if constexpr (kNotes<S>) return (noted >> bit_of(tile, half, i) & 1) != 0;
    return sees_place(tile, half, first, i, lane);
  }

 private:
  // Whether it would by its place alone.
  __device__ __forceinline__ bool sees_place(int tile, int half, int first, int i,
                                             int lane) const {
    if constexpr (S.window) {
      const int place = token_at(first, i, lane) - begin[tile][half];
      return static_cast<u32>(place) < static_cast<u32>(count[tile][half]);
    }
    return token_at(first, i, lane) < count[tile][half];
  }
  static constexpr int bit_of(int tile, int half, int i) {
    static_assert(H::kTiles * H::kHalves * kLaneTokens <= 32);
    return (tile * H::kHalves + half) * kLaneTokens + i;
  }
  static __device__ __forceinline__ int token_at(int first, int i, int lane) {
    return first + i / 4 * kUnitTokens + token_of(i % 4, lane);
  }
  // Whether an element of a row of the mask leaves its token visible; adds what it adds.
  static __device__ __forceinline__ bool allows(float& x, const Queries<S>& queries, int row,
                                                i64 element) {
    if constexpr (S.attn_mask == Extra::boolean) {
      return load_boolean(queries.mask[row], element);
    } else if constexpr (kHas<S.attn_mask>) {
      const float bias = load_extra<S.attn_mask>(queries.mask[row], element);
      x = __fmaf_rn(bias, kLog2E, x);
      return !(bias <= kHidden<S.attn_mask>);  // NaN is seen
    }
    return true;
  }
};
