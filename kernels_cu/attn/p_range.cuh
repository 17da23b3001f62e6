// What P, and with it O and the row sums, are relative to, and what is added to exponents.
#pragma once
#include "layout.cuh"
#include "params.cuh"
#include "spec.cuh"

constexpr float kLog2Of255 = 7.99435343686f;

// Of the steps that P = 1 is cut into the logarithm, which is added in the exponent.
template <auto S>
__device__ constexpr float kStepsLog2 =
    S.pv == Type::e4m3                                              ? 8.80735492206f
    : S.pv != Type::int8                                            ? 0.0f
    : S.p_range == PRange::static127 || S.p_range == PRange::twin ? 6.98868468677f
    : S.p_terms == 2                                                ? 15.9999779861f
                                                                    : kLog2Of255;

// Matrices of bytes that P is multiplied as: the upper and the lower byte of 65535 steps, or, of
// p_range = twin, what is above 2^-p_split and what is below.
template <auto S>
__device__ constexpr int kTerms = S.p_terms == 2 || S.p_range == PRange::twin ? 2 : 1;

// What a term's products with V are multiplied by, to be in units of P's steps.
template <auto S>
__device__ __forceinline__ float term_weight(const AttentionParams& p, int term) {
  if constexpr (S.p_range == PRange::twin) return term == 0 ? 1.0f : p.inverse_twin;
  return S.p_terms == 2 && term == 0 ? 256.0f : 1.0f;
}

// Whether V's scales ride in the exponents: by their logarithms, with or without kLog2Bias.
template <auto S>
__device__ constexpr bool kTokenLogs = S.pv == Type::int8 && S.v_scope == Scope::token;
template <auto S>
__device__ constexpr bool kSortedLogs = S.pv == Type::int8 && S.v_scope == Scope::sorted;

// Whether rules leave exponents as multiples of the softcap, which is the slope then.
template <auto S>
__device__ constexpr bool kCapUnits =
    S.rules.softcap && !S.rules.alibi && !S.rules.biased() && !S.rules.score_mod &&
    !kTokenLogs<S> && !kSortedLogs<S>;

// Whether what rules add to scores is linear in the key: ALiBi's distances, which are differences
// under a causal mask, or an expression that is.
template <auto S>
__device__ constexpr bool kLinear =
    S.rules.score_slope || (S.rules.alibi && S.is_causal && !S.rules.score_mod);

// Whether sums of Q K^T begin at it (sm90/column_starts.cuh).
template <auto S>
__device__ constexpr bool kColumnStarts = [] {
  if constexpr (requires { S.column_starts; }) return S.column_starts;
  return false;
}();

// Whether rules leave exponents as multiples of its slope, which is the slope then: a key adds its
// place in the block, a constant.
template <auto S>
__device__ constexpr bool kSlopeUnits =
    kLinear<S> && !kColumnStarts<S> && !S.rules.softcap && !S.rules.biased() && !S.q_smooth &&
    (S.k_scope == Scope::block || S.k_scope == Scope::sorted);

// Whether what is added to the exponents holds kLog2Bias.
template <auto S>
__device__ constexpr bool kBiased =
    !kCapUnits<S> && (kTokenLogs<S> || S.q_smooth || (S.rules.change_scores() && is_code(S.qk)));

// What is in scores as rules see them: the bias that comes with Q's smoothing.
template <auto S>
__device__ constexpr float kScoreBias =
    S.q_smooth && !kTokenLogs<S> ? kLog2Bias : 0.0f;

// Stands for the maximum of a row that has seen no key. It is finite so that no difference of two
// maxima is NaN, and so low that 2^(it - any score) is 0.
constexpr float kNoKeySeen = -1e30f;

// With p_range = block nothing needs the running maximum: O and the row sum are kept relative to a
// reference that moves only when a block exceeds it by this many powers of two. A block's row sum
// is at most 2^86, where V's scales per token, which it is divided by, are the least that there are
// (2^-71): that leaves room for 2^11 blocks below the largest float.
// With P in two terms the block's sum has 2^8 times as many steps.
template <auto S>
__device__ constexpr float kHeadroom = S.p_terms == 2 ? 22.0f : 30.0f;

// With p_range = row_pow2 the first reference is above the first maximum by this, so that fewer of
// the later blocks move it: log2(255 / 152), of which P at the maximum is 152 and not rounded
// (cuattn/reference/softmax.py).
constexpr float kFirstHeadroom = 0.746425923f;

// Where a row's reference goes when a block's maximum exceeds it.
template <PRange R>
__device__ __forceinline__ float next_reference(float reference, float block_max) {
  if constexpr (R == PRange::row_pow2) {
    // After the first block in whole steps, which integers are shifted by.
    return reference == kNoKeySeen ? fmaxf(reference, block_max + kFirstHeadroom)
                                   : reference + ceilf(fmaxf(block_max - reference, 0.0f));
  }
  return fmaxf(reference, block_max);
}

// In shared memory, what smoothing Q took from the exponents of the keys of a block, for some parts
// of a CTA's rows; nothing for 0 keys.
template <int Parts, int Keys>
struct Deltas {
  float delta[Parts][Keys];
};
template <int Parts>
struct Deltas<Parts, 0> {};
