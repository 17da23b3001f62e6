// The arguments of an attention kernel for one sequence, if lengths are in memory only.
#pragma once
#include "layout.cuh"
#include "params.cuh"
#include "sequences.cuh"
#include "spec.cuh"

struct SequencePlace {
  Sequence q;
  Sequence kv;
};

__device__ __forceinline__ SequencePlace place_of(const AttentionParams& p, int batch) {
  return {sequence_of(p.cu_seqlens_q, nullptr, batch, p.q_pitch, p.max_seqlen_q),
          sequence_of(p.cu_seqlens_k, p.seqused_k, batch, p.total_kv, p.max_seqlen_kv)};
}

// What memory is made for, which lengths do not tell where they are those of a sequence.
template <auto S>
__device__ __forceinline__ int row_pitch(const AttentionParams& p) {
  return S.rules.varlen ? p.q_pitch : p.seqlen_q;
}
template <auto S>
__device__ __forceinline__ int key_pitch(const AttentionParams& p) {
  return S.rules.varlen ? p.kv_pitch : p.seqlen_kv;
}
// Of AttentionParams::delta, where sequences have slots of their own.
template <auto S>
__device__ __forceinline__ int delta_rows(const AttentionParams& p) {
  return ceil_div(S.rules.varlen ? p.max_seqlen_q : p.seqlen_q, kQBlock);
}
template <auto S>
__device__ __forceinline__ int delta_pitch(const AttentionParams& p) {
  return ceil_div(S.rules.varlen ? p.max_seqlen_kv : p.seqlen_kv, kTokenPad) * kTokenPad;
}

// Those of a call of the same batch and heads whose arrays begin with this sequence. `H` is the
// shape of either family, `Groups` how many scales a row of Q or K has.
template <auto S, class H, int Groups>
__device__ __forceinline__ AttentionParams sequence_params(const AttentionParams& p,
                                                           const SequencePlace& at, int batch) {
  AttentionParams own = p;
  own.seqlen_q = at.q.length;
  own.seqlen_kv = at.kv.length;
  if (!p.cu_seqlens_q) return own;
  const i64 row = at.q.first;
  const i64 rows = shift_of(at.q.first, batch, p.num_q_heads, p.q_pitch);
  own.q = static_cast<const char*>(p.q) + row * p.q_stride_row;
  own.o = static_cast<char*>(p.o) + row * p.o_stride_row * bytes_of(S.out);
  own.q_scale = p.q_scale + rows * Groups;
  if (p.lse) own.lse = p.lse + rows;
  if (p.lse_shift) own.lse_shift = p.lse_shift + rows;

  // Codes lie in whole blocks, other operands where their tokens do.
  const i64 token = at.kv.first;
  const i64 padded = static_cast<i64>(at.kv.block) * kTokenPad;
  own.k = static_cast<const char*>(p.k) +
          (H::kScaledScores ? padded * row_bytes(S.qk, S.head_dim) : token * p.k_stride_row);
  own.v = static_cast<const char*>(p.v) +
          (H::kScaledValues ? padded * row_bytes(S.pv, S.channels_v()) : token * p.v_stride_row);
  const int heads = p.num_q_heads / p.heads_per_kv;
  const i64 blocks = shift_of(at.kv.block, batch, heads, p.kv_pitch / kTokenPad);
  constexpr int kPerBlock = H::kSorted    ? kPlaceScales
                            : H::kThreadK ? kTokenPad / 16
                            : H::kTokenK  ? kTokenPad
                                          : kTokenPad / S.block_kv;
  own.k_scale = p.k_scale + (Groups == 1 ? blocks * kPerBlock
                                         : shift_of(at.kv.block * kTokenPad, batch,
                                                    heads * Groups, p.kv_pitch));
  constexpr int kPerBlockV = H::kSorted ? 3 * kPlaceScales : H::kTokenV ? 3 * kTokenPad : 1;
  if (H::kScaledValues && S.v_scope != Scope::channel) {
    own.v_scale = p.v_scale + blocks * kPerBlockV;
  }
  if (p.order) own.order = p.order + blocks * kTokenPad;
  return own;
}
