// The online softmax in base 2: scores become probabilities of the type that P V takes.
#pragma once
#include "attn/p_range.cuh"
#include "hopper/group_scores.cuh"
#include "hopper/group_work.cuh"
#include "hopper/pack_probabilities.cuh"
#include "ptx/math.cuh"

// The state of the two rows, g and g + 8, that a lane sees of its warp's 16.
template <WgmmaSpec S>
struct GroupSoftmax {
  using H = TileShape<S>;
  using Raw = GroupScores<S>;
  using Acc = typename Raw::Acc;
  using Scores = typename Raw::Scores;
  static constexpr bool kLocal = S.p_range == PRange::block;  // P is relative to block_max
  // Sums of a block are taken in parts, for latency, where registers allow it.
  static constexpr int kParts = H::kTokenK ? 1 : 2;

  float reference[2];  // exponent that O and row_sum are relative to
  float row_sum[2];    // of this lane's columns only, until finish()
  float scale[2];      // softmax_scale * log2 e * sq: from a score to an exponent
  float slope[2];      // of the block at hand: exponent = s * slope + intercept
  float intercept[2];
  float block_max[2];  // of the block at hand, in units of the exponent
  float weight[2];     // of the block's P V in O
  float sum[2][kParts];  // of the block at hand

  __device__ __forceinline__ void start(const AttentionParams& p, const Item<S>& item,
                                        int first_row, int lane) {
    const f32* q_scales = p.q_scale + item.batch_head(p) * p.seqlen_q;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      reference[half] = kNoKeySeen;
      row_sum[half] = 0.0f;
      scale[half] = p.scale_log2;
      if constexpr (H::kScaledScores) {
        scale[half] *= __ldg(q_scales + min_of(first_row + 8 * half + lane / 4, p.seqlen_q - 1));
      }
    }
  }

  // Finds the maxima of a block of scores and what follows from them. Calls rescale(half, factor)
  // for O where a row's reference moves.
  template <bool Masked, class Rescale>
  __device__ __forceinline__ void begin(Scores& s, const TokenScales<S>& keys,
                                        const Mask<S>& mask, int lane, Rescale rescale) {
    if constexpr (H::kTokenK) Raw::apply(s, keys, scale, lane);
    Acc top[2];
    Raw::template row_max<Masked>(s, top, mask);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      slope[half] = H::kTokenK ? 1.0f : H::kScaledScores ? scale[half] * keys.k[0] : scale[half];
    }
    if constexpr (kLocal) {
      Raw::across_row(top);
      Raw::template in_log2<Masked>(block_max, top, slope);
    } else {
      // Lanes compare what they have; the maximum of the row is wanted only where one is exceeded.
      Raw::template in_log2<Masked>(block_max, top, slope);
      if (exceeds(0.0f)) {
        Raw::across_row(top);
        Raw::template in_log2<Masked>(block_max, top, slope);
        move_reference(rescale);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float base = kLocal ? block_max[half] : reference[half];
      intercept[half] = kStepsLog2<S> - (Masked && base == -kInf ? 0.0f : base);
      for (float& part : sum[half]) part = 0.0f;
    }
  }

  // One step of k of P V at a time: scores become probabilities; their sum, before rounding, enters
  // the row sum at the end of the block.
  template <bool Masked>
  __device__ __forceinline__ void exponentiate(u32 (&p)[H::kProbabilities], const Scores& s,
                                               const TokenScales<S>& keys, int step, int lane) {
    constexpr int kStepPairs = H::kKeyTiles / 2 / H::kValueSteps;
#pragma unroll
    for (int i = 0; i < kStepPairs; ++i) {
      const int pair = step * kStepPairs + i;
      float inverse[4];
      if constexpr (H::kTokenV) Raw::load_four(inverse, keys.inverse_v, pair, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float y[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const Acc x = s[8 * pair + 4 * (e / 2) + 2 * half + e % 2];
          y[e] = ptx::ex2(H::kTokenK ? Raw::value(x) + intercept[half]
                                     : __fmaf_rn(Raw::value(x), slope[half], intercept[half]));
          if (Masked && Raw::is_lowest(x)) y[e] = 0.0f;
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& to = sum[half][e % kParts];
          to = H::kTokenV ? __fmaf_rn(y[e], inverse[e], to) : to + y[e];
        }
        pack_probabilities<S>(p, y, step, i, half);
      }
    }
  }

  // After all steps of a block, so that nothing of this delays the exponentials.
  template <class Rescale>
  __device__ __forceinline__ void end(Rescale rescale) {
    if constexpr (kLocal) {
      if (exceeds(kHeadroom)) move_reference(rescale);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      weight[half] = kLocal ? ptx::ex2(block_max[half] - reference[half]) : 1.0f;
      const float all = kParts == 2 ? sum[half][0] + sum[half][kParts - 1] : sum[half][0];
      row_sum[half] = __fmaf_rn(all, weight[half], row_sum[half]);
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

 private:
  // Whether some lane of the warp has a maximum that is larger than its row's reference.
  __device__ __forceinline__ bool exceeds(float slack) const {
    return __any_sync(0xffffffffu, block_max[0] > reference[0] + slack ||
                                       block_max[1] > reference[1] + slack);
  }

  template <class Rescale>
  __device__ __forceinline__ void move_reference(Rescale rescale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float next = next_reference<S.p_range>(reference[half], block_max[half]);
      const float shift = reference[half] - next;
      if (!__any_sync(0xffffffffu, shift != 0.0f)) continue;
      const float shrink = ptx::ex2(shift);
      reference[half] = next;
      row_sum[half] *= shrink;
      rescale(half, shift, shrink);
    }
  }
};
