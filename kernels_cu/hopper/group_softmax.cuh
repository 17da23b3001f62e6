// The online softmax in base 2: scores become probabilities of the type that P V takes.
#pragma once
#include "attn/mask.cuh"
#include "attn/p_range.cuh"
#include "hopper/group_work.cuh"
#include "hopper/tile_storage.cuh"
#include "ptx/convert.cuh"
#include "ptx/math.cuh"

// The state of the two rows, g and g + 8, that a lane sees of its warp's 16.
template <WgmmaSpec S>
struct GroupSoftmax {
  using H = TileShape<S>;
  using Acc = Accumulator<H::kIntegerScores>;
  using Scores = Acc[H::kScores];
  static constexpr bool kLocal = S.p_range == PRange::block;  // P is relative to block_max
  static constexpr int kParts = H::kTokenK ? 1 : 2;
  static constexpr bool kAsIntegers = H::kIntegerScores && !H::kTokenK;
  static constexpr int kLowestBits = kAsIntegers ? 0x80000000 : 0xff800000;

  float reference[2];  // exponent that O and row_sum are relative to
  float row_sum[2];    // of this lane's columns only, until finish()
  float scale[2];      // softmax_scale * log2 e * sq: from a score to an exponent
  float slope[2];      // of the block at hand: exponent = s * slope + intercept
  float intercept[2];
  float block_max[2];  // of the block at hand, in units of the exponent
  float weight[2];     // of the block's P V in O
  float sum[2][kParts];  // of the block, in parts for latency

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
    if constexpr (H::kTokenK) apply(s, keys, lane);
    Acc top[2];
    row_max<Masked>(s, top, mask);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      slope[half] = H::kTokenK ? 1.0f : H::kScaledScores ? scale[half] * keys.k[0] : scale[half];
    }
    if constexpr (kLocal) {
      across_row(top);
      in_log2<Masked>(block_max, top);
    } else {
      // Lanes compare what they have; the maximum of the row is wanted only where one is exceeded.
      in_log2<Masked>(block_max, top);
      if (exceeds(0.0f)) {
        across_row(top);
        in_log2<Masked>(block_max, top);
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
      if constexpr (H::kTokenV) load_four(inverse, keys.inverse_v, pair, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float y[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const Acc x = s[8 * pair + 4 * (e / 2) + 2 * half + e % 2];
          y[e] = ptx::ex2(H::kTokenK ? value(x) + intercept[half]
                                     : __fmaf_rn(value(x), slope[half], intercept[half]));
          if (Masked && is_lowest(x)) y[e] = 0.0f;
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& to = sum[half][e % kParts];
          to = H::kTokenV ? __fmaf_rn(y[e], inverse[e], to) : to + y[e];
        }
        if constexpr (S.pv == Type::int8) {
          p[4 * step + 2 * i + half] = ptx::pack_u8x4(y[0], y[1], y[2], y[3]);
        } else if constexpr (S.pv == Type::e4m3) {
          p[4 * step + 2 * i + half] = ptx::pack_e4m3x4(y[0], y[1], y[2], y[3]);
        } else {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            p[4 * step + 2 * e + half] = S.pv == Type::fp16
                                             ? ptx::pack_f16x2(y[2 * e], y[2 * e + 1])
                                             : ptx::pack_bf16x2(y[2 * e], y[2 * e + 1]);
          }
        }
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
  static __device__ __forceinline__ float value(Acc x) {
    if constexpr (H::kTokenK) {
      return __int_as_float(x);
    } else {
      return static_cast<float>(x);
    }
  }
  static __device__ __forceinline__ int bits(int x) { return x; }
  static __device__ __forceinline__ int bits(float x) { return __float_as_int(x); }
  static __device__ __forceinline__ bool is_lowest(Acc x) { return bits(x) == kLowestBits; }
  static __device__ __forceinline__ Acc lowest() {
    if constexpr (H::kIntegerScores) {
      return kLowestBits;
    } else {
      return __int_as_float(kLowestBits);
    }
  }
  static __device__ __forceinline__ Acc larger(Acc a, Acc b) {
    if constexpr (kAsIntegers) {
      return max(a, b);
    } else if constexpr (H::kTokenK) {
      return __float_as_int(fmaxf(__int_as_float(a), __int_as_float(b)));
    } else {
      return fmaxf(a, b);
    }
  }

  // A lane's four keys of two adjacent MMA tiles.
  static __device__ __forceinline__ void load_four(float (&x)[4], const float* of, int pair,
                                                   int lane) {
    const float4 four = *reinterpret_cast<const float4*>(of + 16 * pair + 4 * (lane % 4));
    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
  }

  // s becomes the bits of the exponent: (s * sk) * (softmax_scale * log2 e * sq) + log2 sv.
  __device__ __forceinline__ void apply(Scores& s, const TokenScales<S>& keys, int lane) const {
#pragma unroll
    for (int pair = 0; pair < H::kKeyTiles / 2; ++pair) {
      float sk[4];
      float log2_sv[4] = {};
      load_four(sk, keys.k, pair, lane);
      if constexpr (H::kTokenV) load_four(log2_sv, keys.log2_v, pair, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Acc& x = s[8 * pair + 4 * (i / 2) + 2 * half + i % 2];
          x = __float_as_int(
              __fmaf_rn(static_cast<float>(x) * sk[i], scale[half], log2_sv[i]));
        }
      }
    }
  }

  // The maximum of each of a lane's two rows; unseen keys become the lowest.
  template <bool Masked>
  static __device__ __forceinline__ void row_max(Scores& s, Acc (&top)[2], const Mask<S>& mask) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Acc m[2] = {lowest(), lowest()};
#pragma unroll
      for (int tile = 0; tile < H::kKeyTiles; ++tile) {
        Acc& x0 = s[4 * tile + 2 * half];
        Acc& x1 = s[4 * tile + 2 * half + 1];
        if constexpr (Masked) {
          x0 = mask.sees(tile, 2 * half) ? x0 : lowest();
          x1 = mask.sees(tile, 2 * half + 1) ? x1 : lowest();
        }
        m[tile % 2] = larger(larger(m[tile % 2], x0), x1);
      }
      top[half] = larger(m[0], m[1]);
    }
  }

  // Of the four lanes that share a row.
  static __device__ __forceinline__ void across_row(Acc (&top)[2]) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const Acc other[2] = {__shfl_xor_sync(0xffffffffu, top[0], step),
                            __shfl_xor_sync(0xffffffffu, top[1], step)};
      top[0] = larger(top[0], other[0]);
      top[1] = larger(top[1], other[1]);
    }
  }

  // From units of s to exponents.
  template <bool Masked>
  __device__ __forceinline__ void in_log2(float (&m)[2], const Acc (&top)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      m[half] = value(top[half]) * slope[half];
      if (Masked && is_lowest(top[half])) m[half] = -kInf;
    }
  }

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
