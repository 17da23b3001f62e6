// Softcap, ALiBi, a mask of floats and a caller's expression: what becomes of scores before the
// softmax, in this order.
#pragma once
#include "attn/mask.cuh"
#include "ptx/math.cuh"

// For the two rows of a lane.
template <auto S>
struct ScoreRules {
  // Under a causal mask no key is behind a row's own, so that the distance is a difference. What is
  // left out then an expression would miss.
  static constexpr bool kLinear = S.rules.alibi && S.is_causal && !S.rules.score_mod;
  MaskRows<S> mask;
  float shift[2];  // what smoothing K took from the scores, if they want it again, in score_unit()
  float own[2];    // the key that a row stands beside; or, linear, how far behind the first row's
  int first_own;   // that of the warp's first row
  int seqlen_kv;
  float slope;     // of ALiBi, in units of log 2; before an expression, in the natural unit
  float softcap;
  float inverse_softcap;

  // `first_row` is that of the warp's 16.
  __device__ __forceinline__ ScoreRules(const AttentionParams& p, int batch, int head,
                                        int first_row, int lane)
      : mask(p, batch, head, first_row, lane),
        first_own(first_row + (p.seqlen_kv - p.seqlen_q)),
        seqlen_kv(p.seqlen_kv),
        softcap(p.softcap_log2),
        inverse_softcap(p.inverse_softcap) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 8 * half + lane / 4;
      own[half] = static_cast<float>(kLinear ? row : first_own + row);
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
  }

  // What scores are taken in, if one in log 2 is 1: units of the softcap, or what expressions want.
  __device__ __forceinline__ float score_unit() const {
    if constexpr (kSlopeUnits<S>) return __fdividef(1.0f, unit());
    return S.rules.softcap ? inverse_softcap : S.rules.score_mod ? kLn2 : 1.0f;
  }

  // What all rows add for a key, and for the one that is so many further.
  __device__ __forceinline__ float of_key(int key) const {
    // Rules before it take the score's own bias out.
    constexpr float kBias = kBiased<S> && !kTokenLogs<S> ? kLog2Bias : 0.0f;
    constexpr float kRest = S.rules.unshifted() ? kBias : kBias - kScoreBias<S>;
    return kLinear ? __fmaf_rn(slope, static_cast<float>(key - first_own), kRest) : kRest;
  }
  __device__ __forceinline__ float of_further_key(float of_key, float further) const {
    return kLinear ? __fmaf_rn(slope, further, of_key) : of_key;
  }

  // The exponent of a key, of which `of_key` is a part, in units of log 2 or of the softcap.
  template <bool Masked>
  __device__ __forceinline__ float apply(float x, float of_key, int half, int key) const {
    if constexpr (S.rules.unshifted()) x += shift[half];
    if constexpr (S.rules.softcap) x = ptx::tanh(x);
    if constexpr (kCapUnits<S>) return x;
    if constexpr (S.rules.score_mod) return expressed<Masked>(x, of_key, half, key);
    x = S.rules.softcap ? __fmaf_rn(x, softcap, of_key) : x + of_key;
    if constexpr (S.rules.alibi && !kLinear) {
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
  // Not one that is negative, or that scores are not to be divided by.
  __device__ __forceinline__ bool slope_is_unit() const {
    return slope >= 0x1p-40f && slope <= 0x1p40f;
  }
  // What multiples of ALiBi's slope lack then: all before a block's first key.
  __device__ __forceinline__ float base(int block) const {
    return kSlopeUnits<S> ? of_key(block * S.block_kv) : 0.0f;
  }
  // The same from there to the key that a lane's are counted from: in multiples, and in log 2. The
  // maxima of lanes have to be brought together by it.
  __device__ __forceinline__ float lane_units(int lane) const {
    if constexpr (!kSlopeUnits<S>) return 0.0f;
    const float columns = static_cast<float>(first_column<S>(lane));
    return slope_is_unit() ? columns : slope * columns;
  }
  __device__ __forceinline__ float lane_base(float base, int lane) const {
    return of_further_key(base, static_cast<float>(first_column<S>(lane)));
  }

  // What linear distances leave out is the same for all keys of a row.
  __device__ __forceinline__ void finish(float (&reference)[2]) const {
    if constexpr (kLinear) {
#pragma unroll
      for (int half = 0; half < 2; ++half) reference[half] -= slope * own[half];
    }
  }
};
