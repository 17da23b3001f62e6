// Operands of the quantizer that are one sequence's: where it reads them, and where it writes.
#pragma once
#include "quant/rows.cuh"
#include "quant/sequence_operand.cuh"

// Scales of a block of kTokenPad tokens of K or V as they are stored.
template <QuantizeSpec S, Role R>
constexpr int kBlockScales = R == Role::key
                                 ? (S.k_stored == Scope::thread   ? kTokenPad / 16
                                    : S.k_stored == Scope::sorted ? kPlaceScales
                                    : S.k_stored == Scope::block  ? kTokenPad / S.k_block
                                                                  : kTokenPad)
                                 : (S.v_scope == Scope::token    ? 3 * kTokenPad
                                    : S.v_scope == Scope::sorted ? 3 * kPlaceScales
                                    : S.v_scope == Scope::block  ? 1
                                                                 : 0);

// Makes an operand that of the sequence of `head`, which counts through the batch.
template <QuantizeSpec S, Role R>
__device__ __forceinline__ Sequence narrow_operand(QuantizeOperand& x, int head) {
  constexpr Type kOut = Rows<S, R>::kOut;
  constexpr int kRowBytes = row_bytes(kOut, Rows<S, R>::kHeadDim);
  const Sequence at = narrow<S.input>(x, head);
  if (!x.cu_seqlens) return at;
  const int batch = static_cast<u32>(head) / static_cast<u32>(x.num_heads);
  char* out = static_cast<char*>(x.out);
  if constexpr (R == Role::query || !is_code(kOut)) {
    const i64 rows = shift_of(at.first, batch, x.num_heads, x.pitch);
    x.out = out + rows * kRowBytes;
    x.scale += rows * (S.q_scope == Scope::group ? S.head_dim / S.qk_group : 1);
  } else {
    const i64 blocks = shift_of(at.block, batch, x.num_heads, x.pitch / kTokenPad);
    x.out = out + blocks * kTokenPad * kRowBytes;
    if constexpr (R == Role::key && S.k_stored == Scope::group) {
      const int groups = x.num_heads * (S.head_dim / S.qk_group);
      x.scale += shift_of(at.block * kTokenPad, batch, groups, x.pitch);
    } else {
      x.scale += blocks * kBlockScales<S, R>;
    }
  }
  return at;
}

// Of a CTA's tile; false if it has no tokens.
template <QuantizeSpec S>
__device__ __forceinline__ bool take_queries(QuantizeParams& p, int cta) {
  const u32 tiles = p.q.tiles;
  const int head = static_cast<u32>(cta) / tiles;
  const Sequence at = narrow_operand<S, Role::query>(p.q, head);
  if (p.lse_shift && p.q.cu_seqlens) {
    p.lse_shift += shift_of(at.first, static_cast<u32>(head) / static_cast<u32>(p.q.num_heads),
                            p.q.num_heads, p.q.pitch);
  }
  return static_cast<int>(static_cast<u32>(cta) % tiles) * S.q_tile < at.length;
}

// The same of K or V, of which there may be padding beyond the last token.
template <QuantizeSpec S, Role R>
__device__ __forceinline__ bool take_tokens(QuantizeOperand& x, int cta) {
  const u32 tiles = x.tiles;
  const Sequence at = narrow_operand<S, R>(x, static_cast<u32>(cta) / tiles);
  const int first = static_cast<int>(static_cast<u32>(cta) % tiles) * Rows<S, R>::kTokens;
  return first < ceil_div(at.length, kTokenPad) * kTokenPad;
}

// The same of sorted K and V: the block among those of all heads, each of which has as many as are
// stored; -1 if there is none.
template <QuantizeSpec S>
__device__ __forceinline__ int take_sorted(QuantizeParams& p, int cta) {
  const QuantizeOperand& any = p.k.heads > 0 ? p.k : p.v;
  const u32 tiles = any.tiles;
  const int head = static_cast<u32>(cta) / tiles;
  const int block = static_cast<u32>(cta) % tiles;
  const int stored = ceil_div(any.pitch, kTokenPad);
  const bool packed = any.cu_seqlens != nullptr;
  const int heads = any.num_heads;
  Sequence at;
  if (p.k.heads > 0) at = narrow_operand<S, Role::key>(p.k, head);
  if (p.v.heads > 0) at = narrow_operand<S, Role::value>(p.v, head);
  if (block * kSortedBlock >= at.length) return -1;
  p.k.tiles = stored;
  p.v.tiles = stored;
  if (p.order && packed) {
    p.order += shift_of(at.block, static_cast<u32>(head) / static_cast<u32>(heads), heads, stored) *
               kTokenPad;
  }
  return head * stored + block;
}
