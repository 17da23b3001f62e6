// The online softmax in base 2: scores become probabilities of the type that P V takes.
#pragma once
#include "attn/key_scales.cuh"
#include "attn/mask.cuh"
#include "attn/pack_terms.cuh"
#include "attn/raw_scores.cuh"
#include "attn/row_reference.cuh"
#include "attn/ruled_scores.cuh"
#include "attn/shape.cuh"
#include "attn/slopes.cuh"
#include "attn/sorted_keys.cuh"
#include "ptx/math.cuh"

// The state of the two rows, g and g + 8, that a lane sees of an MMA tile of 16 rows.
template <AttentionSpec S>
struct OnlineSoftmax {
  using H = Shape<S>;
  using Raw = RawScores<S>;
  static constexpr bool kSortedRaw = H::kSorted && !Raw::kRuled;
  static constexpr bool kShifted = Raw::kAsIntegers && !H::kSorted;  // by kScoreStart
  float reference[2];  // exponent that O and row_sum are relative to
  float row_sum[2];    // of this lane's columns only, until finish()
  float scale[2];      // softmax_scale * log2 e * sq: from a score to an exponent
  Slopes<H::kParts> slope;  // of the block at hand: exponent = s * slope + intercept
  float intercept[2];
  float weight[2];     // of the block's P in the row sum, and of P V in O but for V's scale
  float value_scale;   // V's scale of the block

  __device__ __forceinline__ void start(const AttentionParams& p, i64 batch_head, int first_row,
                                        int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      reference[half] = kNoKeySeen;
      row_sum[half] = 0.0f;
      scale[half] = p.scale_log2;
      if constexpr (H::kScaledScores && !H::kGroupK) {
        const int row = min_of(first_row + 8 * half + lane / 4, p.seqlen_q - 1);
        scale[half] *= __ldg(p.q_scale + batch_head * row_pitch<S>(p) + row);
      }
    }
  }

  // Finds the maxima of a block of scores, and what follows from them for O as well.
  template <bool Masked>
  __device__ __forceinline__ void begin(typename H::Scores& s, typename H::Output& o,
                                        const KeyScales<S>& keys, const ScoreRules<S>& rules,
                                        const Mask<S>& mask, int block, int lane) {
    if constexpr (H::kTokenK) keys.apply(s, scale, lane);
    slope.set([&](int part, int half) {
      float x = H::kTokenK ? 1.0f : scale[half];
      if constexpr (H::kBlockK) x *= keys.block_scale();
      if constexpr (H::kSorted) x *= keys.section_scale(part, lane);
      if constexpr (Raw::kRuled) x *= rules.score_unit();
      return x;
    });
    const float base = rules.base(block);  // where exponents are multiples of a slope
    if constexpr (Raw::kRuled) {
      apply_rules_to<S, Masked>(s, keys, slope, rules, mask, block, lane);
      slope.set([&](int, int) { return rules.unit(); });
    }
    float row_max_log2[2];
    if constexpr (kSortedRaw) {
      sorted_row_max<Masked>(row_max_log2, s, slope, keys, mask, lane);
    } else {
      float top[2];  // in units of s
      Raw::template row_max<Masked && !Raw::kRuled>(s, top, mask, rules.lane_units(lane));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& m = row_max_log2[half];
        m = (Raw::kAsIntegers ? top[half] - H::kScoreStart : top[half]) * slope.at[0][half];
        if constexpr (kSlopeUnits<S>) m = __fmaf_rn(top[half], slope.at[0][half], base);
        if (Masked && Raw::is_lowest(top[half])) m = -kInf;
      }
    }
    move_reference<S>(reference, row_sum, o, row_max_log2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float m = S.p_range == PRange::block ? row_max_log2[half] : reference[half];
      float& b = intercept[half];
      const bool hides = Masked || S.rules.score_mod;
      b = kStepsLog2<S> - (hides && m == -kInf ? 0.0f : m);
      if constexpr (kShifted) b = __fmaf_rn(-H::kScoreStart, slope.at[0][half], b);
      if constexpr (kSlopeUnits<S>) b += __fmaf_rn(rules.lane_units(lane), slope.at[0][half], base);
      weight[half] =
          S.p_range == PRange::block ? ptx::ex2(row_max_log2[half] - reference[half]) : 1.0f;
    }
    value_scale = H::kBlockV ? keys.block_scale_v() : 1.0f;
  }

  // The block's scores become probabilities; their sum, before rounding, enters the row sum.
  template <bool Masked>
  __device__ __forceinline__ void exponentiate(typename H::Probabilities& p,
                                               const typename H::Scores& s,
                                               const KeyScales<S>& keys,
                                               const AttentionParams& params, int lane) {
    float sum[2] = {0.0f, 0.0f};
    SortedSections<S> sections;
#pragma unroll
    for (int pair = 0; pair < H::kKeyTiles / 2; ++pair) {
      // Keeps the compiler from starting so many exponentials that registers spill.
      if (S.p_range != PRange::row_pow2 && (kTerms<S> > 1 || pair % 2 == 0)) __syncwarp();
      float4 inverse;  // of V's scales: takes them out of the row sum
      if constexpr (H::kTokenV) inverse = keys.inverse_v(pair, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float y[4];
        if constexpr (H::kSorted) {
          sections.template exponentiate<Masked>(y, sum[half], s, pair, half, slope,
                                                 intercept[half], keys, lane);
        } else {
          Raw::template exponentials<Masked>(y, s, pair, half, slope.at[0][half], intercept[half]);
        }
        if constexpr (H::kTokenV) {
          const float weights[4] = {inverse.x, inverse.y, inverse.z, inverse.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[half] = __fmaf_rn(y[i], weights[i], sum[half]);
        } else if constexpr (!H::kSorted) {
          sum[half] += y[0] + y[1];
          sum[half] += y[2] + y[3];
        }
        if constexpr (H::kScaledValues) {
          u32 word[kTerms<S>];
          pack_terms<S>(word, y, params);
#pragma unroll
          for (int term = 0; term < kTerms<S>; ++term) {
            p[term * H::kValueSteps + pair / 2][2 * (pair % 2) + half] = word[term];
          }
        } else {
          u32 word[2];
          pack_halves<S>(word, y);
          p[pair][half] = word[0];
          p[pair][2 + half] = word[1];
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row_sum[half] = __fmaf_rn(sum[half], weight[half], row_sum[half]);
    }
  }

  // Adds the row sums of the four lanes that share a row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row_sum[half] += __shfl_xor_sync(0xffffffffu, row_sum[half], 1);
      row_sum[half] += __shfl_xor_sync(0xffffffffu, row_sum[half], 2);
    }
  }
};
