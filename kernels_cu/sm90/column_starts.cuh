// Scores that begin at what is linear in the key: ALiBi's terms, in units of a score.
//
// A sum of products that starts at the bits of kMagic is a float already (numeric.cuh). One that
// starts at kMagic + t, with t the whole number of units next to what the key adds, is with that
// added: a multiply-add before the products takes the place of a conversion behind them. t is
// counted from the middle of a block, and rounded twice: off by up to a unit of the score. Where it
// would leave no room for a score, as units are small, a warp's scores begin at kMagic, and get it
// in a coarser unit.
#pragma once
#include "attn/block_tokens.cuh"
#include "attn/score_rules.cuh"
#include "attn/slopes.cuh"
#include "sm90/row_state.cuh"
#include "sm90/tile_storage.cuh"

template <WgmmaSpec S>
struct ColumnStarts {
  using H = TileShape<S>;
  using Scores = int[H::kScores];
  using OfParts = Slopes<H::kParts>;
  static constexpr float kCentre = S.block_kv / 2;
  static constexpr float kLargestScore = 127.0f * 127.0f * S.head_dim;
  // On either side of kMagic, less what sums of rounded numbers are larger.
  static constexpr float kRoom = 0x1p22f - 4.0f;
  static constexpr float kSteepest = (kRoom - kLargestScore) / kCentre;
  static_assert(!kColumnStarts<S> || (H::kIntegerScores && kSteepest > 0.0f));
  static_assert(!kColumnStarts<S> || (S.p_range == PRange::block && !H::kTokenK));

  bool is_coarse;  // of the block at hand, in this warp

  // Of a block whose products are to be added to `s`.
  __device__ __forceinline__ void begin(Scores& s, const RowState<S>& rows,
                                        const TokenScales<S>& keys, BlockTokens<S> tokens,
                                        int lane) {
    OfParts steps;
    bool fits = true;
#pragma unroll
    for (int part = 0; part < H::kParts; ++part) {
      const float of_keys = H::kSorted ? keys.k[lane % 4 * kSections + part] : keys.k[0];
      const float inverse = ptx::rcp(of_keys);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        steps.at[part][half] = rows.steepness[half] * inverse;
        fits = fits && fabsf(steps.at[part][half]) <= kSteepest;
      }
    }
    is_coarse = !__all_sync(0xffffffffu, fits);
    steps.set([&](int part, int half) { return is_coarse ? 0.0f : steps.at[part][half]; });
    each_start(tokens, steps, lane,
               [&](int i, int, int, float start) { s[i] = __float_as_int(start); });
  }

  // Of scores that began at kMagic: `slope` is that of a score, and becomes that of the new unit.
  __device__ __forceinline__ void refit(Scores& s, OfParts& slope, float of_key,
                                        BlockTokens<S> tokens, int lane) const {
    OfParts unit, of_score, steps;
    unit.set([&](int part, int half) {
      const float most = __fmaf_rn(slope.at[part][half], kLargestScore, fabsf(of_key) * kCentre);
      return __fmaf_rn(most, 1.0f / kRoom, 0x1p-120f);  // no zero, which it is divided by
    });
    of_score.set([&](int part, int half) {
      return __fdividef(slope.at[part][half], unit.at[part][half]);
    });
    steps.set([&](int part, int half) { return __fdividef(of_key, unit.at[part][half]); });
    each_start(tokens, steps, lane, [&](int i, int part, int half, float start) {
      const float score = __int_as_float(s[i]) - kMagic;
      s[i] = __float_as_int(__fmaf_rn(score, of_score.at[part][half], start));
    });
    slope = unit;
  }

 private:
  // put(i, part, half, start) for each of a lane's scores, of a key that adds steps.at[part][half]
  // more than the one before it.
  template <class Put>
  static __device__ __forceinline__ void each_start(BlockTokens<S>& tokens, const OfParts& steps,
                                                    int lane, const Put& put) {
    const float first = first_column<S>(lane) - BlockTokens<S>::kOffset - kCentre;
    OfParts origin;
    origin.set([&](int part, int half) {
      return __fmaf_rn(first, steps.at[part][half], kMagic);
    });
#pragma unroll
    for (int tile = 0; tile < H::kKeyTiles; ++tile) {
      tokens.come_to(tile);
      const int part = H::part_of(tile);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float token = tokens.shifted(tile, e);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          put(4 * tile + 2 * half + e, part, half,
              __fmaf_rn(token, steps.at[part][half], origin.at[part][half]));
        }
      }
    }
  }
};
