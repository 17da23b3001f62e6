// Q, K and V as the products of attention take them: codes with their scales, or values of another
// type. One read of the input, one write of the output, all three in one launch.
//
// A tile is of tokens of one head of one operand, or a block of sorted keys of K and V. A CTA has
// one; or, where rows pass through shared memory, several, of which the next is always on its way.
//   quantize_rows    Q, K: scale per token or group of its channels, per thread of a product, per
//                    block of tokens, or per head; perhaps rotated
//   quantize_values  V: scale per token, per block of tokens or per channel; transposed
//   quantize_sorted  K and V: keys in an order of their own, scale per section of places
//   cast_rows        any: fp16 or bf16
#include "quant/quantize_rows.cuh"
#include "quant/quantize_sorted.cuh"
#include "quant/quantize_values.cuh"
#include "quant/varlen_operands.cuh"

// The CTA's tiles of an operand, from `cta` on. Returns by how much the next one lies past its end.
template <QuantizeSpec S, Role R>
__device__ __forceinline__ int quantize_operand(const QuantizeParams& p, const QuantizeOperand& x,
                                                int cta, QuantizeStorage<S>& storage) {
  const int tiles = x.heads * x.tiles;
  if constexpr (is_code(Rows<S, R>::kOut) && R != Role::value) {
    cta = quantize_rows<S, R>(p, x, cta, storage);
  } else {
    while (cta < tiles) {
      if constexpr (R == Role::value && is_code(S.v)) {
        quantize_values(p, cta, storage);
      } else {
        cast_rows<S, R>(p, x, cta);
      }
      cta += gridDim.x;
      if constexpr (!S.staged) break;  // the CTA has no other
      __syncthreads();
    }
  }
  return cta - tiles;
}

// The same of one of several sequences whose lengths are in memory only. CTAs that it has no tokens
// for have nothing to do.
template <QuantizeSpec S>
__device__ __forceinline__ void quantize_sequence(const QuantizeParams& p,
                                                  QuantizeStorage<S>& storage) {
  const int q_end = p.q.heads * p.q.tiles;
  const int k_end = q_end + p.k.heads * p.k.tiles;
  const int cta = blockIdx.x;
  if (p.next_item && cta == 0 && threadIdx.x == 0) *p.next_item = 0;
  QuantizeParams own = p;
  if (cta < q_end) {
    if (!take_queries<S>(own, cta)) return;
    quantize_operand<S, Role::query>(own, own.q, cta, storage);
  } else if constexpr (S.k_scope == Scope::sorted) {
    const int block = take_sorted<S>(own, cta - q_end);
    if (block >= 0) quantize_sorted(own, block, storage);
  } else if (cta < k_end) {
    if (!take_tokens<S, Role::key>(own.k, cta - q_end)) return;
    quantize_operand<S, Role::key>(own, own.k, cta - q_end, storage);
  } else {
    if (!take_tokens<S, Role::value>(own.v, cta - k_end)) return;
    quantize_operand<S, Role::value>(own, own.v, cta - k_end, storage);
  }
}

template <QuantizeSpec S>
__device__ __forceinline__ void quantize_operands(const QuantizeParams& p) {
  static_assert(sizeof(QuantizeStorage<S>) == S.smem_bytes,
                "cuattn/specs/quantize.py and QuantizeStorage disagree");
  extern __shared__ __align__(128) u8 smem[];
  QuantizeStorage<S>& storage = *reinterpret_cast<QuantizeStorage<S>*>(smem);
  if constexpr (S.varlen) {
    quantize_sequence(p, storage);
    return;
  }
  if (p.next_item && blockIdx.x == 0 && threadIdx.x == 0) *p.next_item = 0;
  // Tiles of Q, then of K, then of V: a CTA has every gridDim.x-th of all.
  int cta = quantize_operand<S, Role::query>(p, p.q, blockIdx.x, storage);
  if constexpr (S.k_scope == Scope::sorted) {
    quantize_sorted(p, cta, storage);
  } else {
    cta = quantize_operand<S, Role::key>(p, p.k, cta, storage);
    quantize_operand<S, Role::value>(p, p.v, cta, storage);
  }
}
