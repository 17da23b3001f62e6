// Softcap, ALiBi and a mask of floats: what becomes of scores before the softmax, in this order.
#pragma once
#include "attn/mask.cuh"
#include "ptx/math.cuh"

constexpr float kLog2e = 1.44269504089f;

// For the two rows of a lane.
template <auto S>
struct ScoreRules {
  MaskRows<S> mask;
  float shift[2];  // what smoothing K took from the exponents, for the softcap
  float own[2];    // the key that a row stands beside
  float slope;     // of ALiBi, in units of log 2
  float softcap;
  float inverse_softcap;

  // `first_row` is that of the warp's 16.
  __device__ __forceinline__ ScoreRules(const AttentionParams& p, int batch, int head,
                                        int first_row, int lane)
      : mask(p, batch, head, first_row, lane),
        softcap(p.softcap_log2),
        inverse_softcap(p.inverse_softcap) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 8 * half + lane / 4;
      own[half] = static_cast<float>(row + (p.seqlen_kv - p.seqlen_q));
      // Where Q's smoothing is added again, and no logarithm of V, the bias is in the exponents.
      shift[half] = S.q_smooth ? -kScoreBias<S> : 0.0f;
      if (S.rules.softcap && p.lse_shift) {
        const i64 head_row = (static_cast<i64>(batch) * p.num_q_heads + head) * p.seqlen_q;
        shift[half] += kLog2e * __ldg(p.lse_shift + head_row + min_of(row, p.seqlen_q - 1));
      }
    }
    if constexpr (S.rules.alibi) {
      slope = kLog2e * widened(p.alibi_slopes,
                               batch * p.alibi_stride_batch + head * p.alibi_stride_head,
                               p.alibi_type);
    }
  }

  // The exponent of a key, which is hidden if it is -inf.
  template <bool Masked>
  __device__ __forceinline__ float apply(float x, int half, int key) const {
    if constexpr (S.rules.softcap) {
      x = softcap * ptx::tanh((x + shift[half]) * inverse_softcap) + kScoreBias<S>;
    }
    if constexpr (S.rules.alibi) x -= slope * fabsf(own[half] - static_cast<float>(key));
    if constexpr (Masked && S.rules.biased()) x += kLog2e * mask.bias(half, key);
    return x;
  }
};

// The scores of a block become exponents: score(tile, half, e) is one of a lane's in units of log 2,
// added(tile, e) what its key adds behind the rules, put(tile, half, e, x) takes the exponent.
// `order` has the tokens of a sorted block by their places.
template <auto S, bool Masked, class Score, class Added, class Put>
__device__ __forceinline__ void apply_rules(const ScoreRules<S>& rules, const Mask<S>& mask,
                                            const u8* order, int block, int lane, Score score,
                                            Added added, Put put) {
  constexpr bool kTokens = S.rules.alibi || S.rules.biased() || Masked;
  const u8* places = order + lane % 4 * kLanePlaces;
#pragma unroll
  for (int tile = 0; tile < S.block_kv / 8; ++tile) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int token = 8 * tile + lane % 4 * 2 + e;
      if constexpr (kTokens && Mask<S>::kSorted) token = mask.ordered ? places[2 * tile + e] : token;
      const int key = block * S.block_kv + token;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bool sees = true;
        if constexpr (Masked) {
          sees = Mask<S>::kSorted ? mask.sees_token(token, half) : mask.sees(tile, 2 * half + e);
        }
        float x = -kInf;
        if (sees) x = rules.template apply<Masked>(score(tile, half, e), half, key) + added(tile, e);
        put(tile, half, e, x);
      }
    }
  }
}
