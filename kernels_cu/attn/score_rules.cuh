// Softcap, ALiBi, a mask of floats and a caller's expression: what becomes of scores before the
// softmax, in this order.
#pragma once
#include "attn/key_slope.cuh"
#include "ptx/math.cuh"
#include "ptx/registers.cuh"

// For the two rows of a lane.
template <auto S>
struct ScoreRules : KeySlope<S> {
  using KeySlope<S>::first_own, KeySlope<S>::slope, KeySlope<S>::slope_is_unit;
  static constexpr bool kExpression = S.rules.score_slope;
  static constexpr float kLargestTerm = 0x1p40f;
  MaskRows<S> mask;
  float shift[2];  // what smoothing K took from the scores, if they want it again, in score_unit()
  float own[2];    // the key that a row stands beside; or, linear, how far behind the first row's
  int batch_head;  // of an expression
  int seqlen_kv;
  float softcap;
  float inverse_softcap;

  // `first_row` is that of the warp's 16.
  __device__ __forceinline__ ScoreRules(const AttentionParams& p, int batch, int head,
                                        int first_row, int lane)
      : mask(p, batch, head, first_row, lane),
        seqlen_kv(p.seqlen_kv),
        softcap(p.softcap_log2),
        inverse_softcap(p.inverse_softcap) {
    first_own = first_row + (p.seqlen_kv - p.seqlen_q);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 8 * half + lane / 4;
      own[half] = static_cast<float>(kLinear<S> ? row : first_own + row);
      // Where Q's smoothing is added again, and no logarithm of V, the bias is in the scores.
      shift[half] = -kScoreBias<S>;
      if (S.rules.unshifted() && p.lse_shift) {
        const i64 head_row =
            (static_cast<i64>(batch) * p.num_q_heads + head) * row_pitch<S>(p);
        shift[half] +=
            kLog2e * __ldg(p.lse_shift + head_row + min_of(first_row + row, p.seqlen_q - 1));
      }
      shift[half] *= score_unit();
    }
    if constexpr (S.rules.alibi) {
      slope = (S.rules.score_mod ? 1.0f : kLog2e) *
              widened(p.alibi_slopes,
                               batch * p.alibi_stride_batch + head * p.alibi_stride_head,
                               p.alibi_type);
    }
    if constexpr (kExpression) {
      batch_head = batch * p.num_q_heads + head;
      slope = kLog2e * mask.user.slope();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float term = fabsf(row_term(half));
        if (!(kColumnStarts<S> ? term < kInf : term <= kLargestTerm)) slope = kNaN;
      }
      // Of all rows of a warp, or none.
      if (kColumnStarts<S> && __any_sync(0xffffffffu, !this->is_linear())) slope = kNaN;
    }
  }

  // What a linear expression makes of a score of 0 and the key beside the warp's first row.
  __device__ __forceinline__ float row_term(int half) const {
    return mask.user.score(0.0f, half, first_own);
  }

  // The same rules, of which an expression's rows are worked out anew: a loop that seldom asks it
  // has their registers.
  __device__ __forceinline__ ScoreRules anew() const {
    ScoreRules rules = *this;
    const AttentionParams& p = *mask.user.params;
    const int at = ptx::opaque(batch_head);
    const int first_row = first_own - (p.seqlen_kv - p.seqlen_q);
    rules.mask.user = UserRows<S>(p, at / p.num_q_heads, at % p.num_q_heads, first_row,
                                  static_cast<int>(threadIdx.x) % kWarpSize);
    return rules;
  }

  // What scores are taken in, if one in log 2 is 1: units of the softcap, or what expressions want.
  __device__ __forceinline__ float score_unit() const {
    if constexpr (kExpression) return slope_is_unit() ? __fdividef(1.0f, slope) : kLn2;
    if constexpr (kSlopeUnits<S>) return __fdividef(1.0f, unit());
    return S.rules.softcap ? inverse_softcap : S.rules.score_mod ? kLn2 : 1.0f;
  }

  // The scale of a row, before the loop, in that of a slope.
  __device__ __forceinline__ float scaled(float x) const {
    return kSlopeUnits<S> ? x * score_unit() : x;
  }

  // The exponent of a key, of which `of_key` is a part, in units of log 2 or of the softcap.
  template <bool Masked, bool Expressed>
  __device__ __forceinline__ float apply(float x, float of_key, int half, int key) const {
    if constexpr (S.rules.unshifted()) x += shift[half];
    if constexpr (S.rules.softcap) x = ptx::tanh(x);
    if constexpr (kCapUnits<S>) return x;
    if constexpr (Expressed) return expressed<Masked>(x, of_key, half, key);
    x = S.rules.softcap ? __fmaf_rn(x, softcap, of_key) : x + of_key;
    if constexpr (S.rules.alibi && !kLinear<S>) {
      x = __fmaf_rn(-slope, fabsf(own[half] - static_cast<float>(key)), x);
    }
    return x;
  }

  // The same with the caller's expression, which wants the logit alone, in the natural unit.
  template <bool Masked>
  __device__ __forceinline__ float expressed(float x, float of_key, int half, int key) const {
    if constexpr (S.rules.softcap) x *= softcap * kLn2;
    if constexpr (S.rules.alibi) {
      x = __fmaf_rn(-slope, fabsf(own[half] - static_cast<float>(key)), x);
    }
    if constexpr (Masked && S.rules.biased()) {
      const float bias = mask.bias(half, key, seqlen_kv);
      if (bias == -kInf) return bias;
      x += bias;
    }
    x = mask.user.score(x, half, key);
    // What is hidden stays so, be V's scale NaN.
    if ((kTokenLogs<S> || kSortedLogs<S>) && x == -kInf) return x;
    return __fmaf_rn(kLog2e, x, of_key);
  }

  // From what `apply` returns to exponents of log 2.
  __device__ __forceinline__ float unit() const {
    if constexpr (kSlopeUnits<S>) return slope_is_unit() ? slope : 1.0f;
    return kCapUnits<S> ? softcap : 1.0f;
  }

  // What linear distances leave out is the same for all keys of a row.
  __device__ __forceinline__ void finish(float (&reference)[2]) const {
    if constexpr (kExpression) {
      if (!this->is_linear()) return;
      const ScoreRules rules = anew();
#pragma unroll
      for (int half = 0; half < 2; ++half) reference[half] += kLog2e * rules.row_term(half);
    } else if constexpr (kLinear<S>) {
#pragma unroll
      for (int half = 0; half < 2; ++half) reference[half] -= slope * own[half];
    }
  }
};
