// Scores that begin at what is linear in the key: ALiBi's terms, in units of a score.
//
// A sum of products that starts at the bits of kMagic is a float already (numeric.cuh). One that
// starts at kMagic + t, with t the whole number of units next to what the key adds, is with that
// added: a multiply-add before the products takes the place of a conversion behind them. t is
// counted from the middle of a block, and rounded twice: off by up to a unit of the score. Where it
// would leave no room for a score, as units are small, a warp's scores begin at kMagic, and get it
// in a coarser unit.
#pragma once
#include "attn/slopes.cuh"
#include "sm90/group_scores.cuh"
#include "sm90/row_state.cuh"
#include "sm90/sorted_tokens.cuh"

template <WgmmaSpec S>
struct ColumnStarts {
  using H = TileShape<S>;
  using Scores = int[H::kScores];
  static constexpr float kCentre = S.block_kv / 2;
  static constexpr float kLargestScore = 127.0f * 127.0f * S.head_dim;
  // On either side of kMagic, less what sums of rounded numbers are larger.
  static constexpr float kRoom = 0x1p22f - 4.0f;
  static constexpr float kSteepest = (kRoom - kLargestScore) / kCentre;
  static_assert(!kColumnStarts<S> || (H::kIntegerScores && kSteepest > 0.0f));
  static_assert(!kColumnStarts<S> || (S.p_range == PRange::block && !H::kTokenK));

  float* tokens;   // in shared memory, of the warp: sm90/sorted_tokens.cuh
  bool is_coarse;  // of the block at hand, in this warp

  // Of a block whose products are to be added to `s`.
  __device__ __forceinline__ void begin(Scores& s, RowState<S>& rows, const TokenScales<S>& keys,
                                        bool ordered, int lane) {
    rows.fetch_steepness();
    if constexpr (H::kSorted) put_tokens(tokens, keys.order, ordered, lane);
    // With a scale that is 0 they do not fit.
    float inverse[H::kParts];
    const float steepest = fmaxf(fabsf(rows.steepness[0]), fabsf(rows.steepness[1]));
    bool fits = true;
#pragma unroll
    for (int part = 0; part < H::kParts; ++part) {
      inverse[part] = ptx::rcp(fmaxf(keys.k[H::kSorted ? lane % 4 * kSections + part : 0], kLeast));
      fits = fits && steepest * inverse[part] <= kSteepest;
    }
    is_coarse = !__all_sync(0xffffffffu, fits);
    float steepness[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      steepness[half] = is_coarse ? 0.0f : rows.steepness[half];
    }
    each_start(
        lane,
        [&](int part, int half) { return steepness[half] * inverse[part]; },
        [&](int i, int, float start) { s[i] = __float_as_int(start); });
  }

  // Of scores that began at kMagic: `slope` is that of a score, and becomes that of the new unit.
  __device__ __forceinline__ void refit(Scores& s, Slopes<H::kParts>& slope,
                                        float of_key, int lane) const {
    float of_score[2];
    each_start(
        lane,
        [&](int part, int half) {
          float& unit = slope.at[part][half];
          const float most = __fmaf_rn(unit, kLargestScore, fabsf(of_key) * kCentre);
          const float next = __fmaf_rn(most, 1.0f / kRoom, kLeast);
          const float inverse = ptx::rcp(next);
          of_score[half] = unit * inverse;
          unit = next;
          return of_key * inverse;
        },
        [&](int i, int half, float start) {
          const float score = __int_as_float(s[i]) - kMagic;
          s[i] = __float_as_int(__fmaf_rn(score, of_score[half], start));
        });
  }

 private:
  // What is divided by is no less.
  static constexpr float kLeast = 0x1p-120f;

  // put(i, half, start) for each of a lane's scores, of a key that adds steps(part, half) more than
  // the one before it, in units of the score.
  template <class Steps, class Put>
  __device__ __forceinline__ void each_start(int lane, const Steps& steps, const Put& put) const {
    const float first = first_column<S>(lane) - kCentre;
    float step[2];
    float origin[2];
    float of_pair[4];
#pragma unroll
    for (int tile = 0; tile < H::kKeyTiles; ++tile) {
      if (tile == 0 || H::part_of(tile) != H::part_of(tile - 1)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          step[half] = steps(H::part_of(tile), half);
          origin[half] = H::kSorted ? kMagic : __fmaf_rn(first, step[half], kMagic);
        }
      }
      if (H::kSorted && tile % 2 == 0) GroupScores<S>::load_four(of_pair, tokens, tile / 2, lane);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float token = H::kSorted ? of_pair[tile % 2 * 2 + e] : 8 * tile + e;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          put(4 * tile + 2 * half + e, half, __fmaf_rn(token, step[half], origin[half]));
        }
      }
    }
  }
};
