// The online softmax in base 2: scores become probabilities of the type that P V takes.
#pragma once
#include "attn/pack_terms.cuh"
#include "ptx/registers.cuh"
#include "sm90/block_exponents.cuh"
#include "sm90/group_work.cuh"
#include "sm90/row_state.cuh"
#include "sm90/sorted_scores.cuh"

// The state of the two rows, g and g + 8, that a lane sees of its warp's 16.
template <WgmmaSpec S>
struct GroupSoftmax {
  using H = TileShape<S>;
  using Raw = GroupScores<S>;
  using Acc = typename Raw::Acc;
  using Scores = typename Raw::Scores;
  static constexpr bool kLocal = S.p_range == PRange::block;  // P is relative to block_max
  static constexpr bool kSortedRaw = H::kSorted && !Raw::kRuled;

  RowState<S> rows;
  BlockExponents<S> exponents;
  float intercept[2];  // what exponents of the block at hand get
  float block_max[2];  // of the block at hand, in units of the exponent
  float weight[2];     // of the block's P in the row sum, and of P V in O but for V's scale
  float value_scale;   // V's scale of the block
  float sum[2];        // of the block at hand
  float first_sum[2];  // the same after the first keys of a step
  SortedSections<S> sections;  // if keys are sorted
  u32 zero;            // hidden: for ptx::after

  // `row` counts the rows of the item; `parking` is shared memory of this thread.
  __device__ __forceinline__ void start(const AttentionParams& p, const ItemConstants<S>& item,
                                        const ScoreRules<S>& rules, int row, u32 parking) {
    zero = ptx::hidden_zero(item.item.all.end);
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[half] = rules.scaled(H::kScaledScores ? item.row_scale[row + 8 * half] : p.scale_log2);
    }
    rows.start(scale, rules.slope, parking);
  }

  // Finds the maxima of a block of scores and what follows from them; see RowState for `rescale`.
  template <bool Masked, class Rescale>
  __device__ __forceinline__ void begin(Scores& s, const TokenScales<S>& keys,
                                        const ScoreRules<S>& rules, const Mask<S>& mask, int block,
                                        int group, int lane, Rescale rescale) {
    rows.fetch_scale();
    exponents.template begin<Masked>(s, rows.scale, keys, rules, mask, block, group, lane);
    // What rules hide is the lowest already.
    constexpr bool kHides = Masked && !Raw::kRuled;
    Acc top[2];
    const float of_lane = rules.lane_units(lane);
    if constexpr (!kSortedRaw) {
      Raw::template row_max<kHides>(s, top, mask, of_lane);
      exponents.template know_maxima<Masked>(s, reinterpret_cast<Acc(&)[2][1]>(top), rules);
    }
    const float base = kSlopeUnits<S> ? exponents.base : 0.0f;
    const auto in_log2 = [&](int half, float x) { return exponents(0, half, x, base); };
    if constexpr (kSortedRaw) {
      SortedScores<S>::template row_max<Masked>(
          block_max, s, keys, mask, lane,
          [&](auto& tops) { exponents.template know_maxima<Masked>(s, tops, rules); }, exponents);
    } else if constexpr (kLocal) {
      Raw::template across_row<kHides>(s, top, mask, of_lane);
      Raw::template in_log2<Raw::template kMayHide<Masked>>(block_max, top, in_log2);
    } else {
      // Lanes compare what they have; the maximum of the row is wanted only where one is exceeded.
      Raw::template in_log2<Masked>(block_max, top, in_log2);
      if (!rows.move_one_step(block_max, rescale, lane)) {
        Raw::template across_row<kHides>(s, top, mask, of_lane);
        Raw::template in_log2<Masked>(block_max, top, in_log2);
        rows.move(block_max, rescale);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float top_of_p = kLocal ? block_max[half] : rows.reference[half];
      constexpr bool kMayHide = Masked || S.rules.score_mod;
      intercept[half] = kStepsLog2<S> - (kMayHide && top_of_p == -kInf ? 0.0f : top_of_p);
      if constexpr (kSlopeUnits<S>) intercept[half] += exponents(0, half, of_lane, base);
      if constexpr (kColumnStarts<S>) exponents.settle(intercept[half], block_max[half], half);
      sum[half] = 0.0f;
    }
  }

  // One step of k of P V at a time: scores become probabilities; their sum, before rounding, enters
  // the row sum at the end of the block.
  template <bool Masked>
  __device__ __forceinline__ void exponentiate(u32 (&p)[kTerms<S>][H::kProbabilities],
                                               const Scores& s, const TokenScales<S>& keys,
                                               const AttentionParams& params, int step, int lane) {
    constexpr int kStepPairs = H::kKeyTiles / 2 / H::kValueSteps;
#pragma unroll
    for (int i = 0; i < kStepPairs; ++i) {
      const int pair = step * kStepPairs + i;
      float inverse[4];
      if constexpr (H::kTokenV) Raw::load_four(inverse, keys.inverse_v, pair, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (S.tied_steps && step > 0 && i == 0) {
          intercept[half] = ptx::after(intercept[half], first_sum[half], zero);
        }
        float y[4];
        if constexpr (H::kSorted) {
          sections.template exponentiate<Masked>(y, sum[half], s, pair, half, intercept[half], keys,
                                                 lane, exponents);
        } else {
          Raw::template exponentials<Masked>(
              y, s, pair, half, [&](float x) { return exponents(0, half, x, intercept[half]); });
        }
#pragma unroll
        for (int e = 0; e < (H::kSorted ? 0 : 4); ++e) {
          sum[half] = H::kTokenV ? __fmaf_rn(y[e], inverse[e], sum[half]) : sum[half] + y[e];
        }
        if (i == 0) first_sum[half] = sum[half];
        if constexpr (H::kScaledValues) {
          u32 word[kTerms<S>];
          pack_terms<S>(word, y, params);
#pragma unroll
          for (int term = 0; term < kTerms<S>; ++term) {
            p[term][4 * step + 2 * i + half] = word[term];
          }
        } else {
          u32 word[2];
          pack_halves<S>(word, y);
          p[0][4 * step + half] = word[0];
          p[0][4 * step + 2 + half] = word[1];
        }
      }
    }
  }

  // After all steps of a block and the start of its P V, which does not wait for this.
  template <class Rescale>
  __device__ __forceinline__ void end(const TokenScales<S>& keys, Rescale rescale) {
    rows.fetch();
    if constexpr (kLocal) {
      if (rows.exceeded(block_max, kHeadroom<S>)) rows.move(block_max, rescale);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      weight[half] = kLocal ? ptx::ex2(block_max[half] - rows.reference[half]) : 1.0f;
      rows.sum[half] = __fmaf_rn(sum[half], weight[half], rows.sum[half]);
    }
    value_scale = H::kBlockV ? keys.log2_v[0] : 1.0f;
    rows.park();
  }
};
