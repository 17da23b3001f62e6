// Q, K and V as the products of attention take them: codes with their scales, or values of another
// type. One read of the input, one write of the output, all three in one launch.
//
// A CTA owns a tile of tokens of one head of one operand, first those of Q, then of K, then of V,
// or a block of sorted keys of K and V.
//   quantize_rows    Q, K: scale per token or group of its channels, per thread of a product, per
//                    block of tokens, or per head; perhaps rotated
//   quantize_values  V: scale per token, per block of tokens or per channel; transposed
//   quantize_sorted  K and V: keys in an order of their own, scale per lane and section of places
//   cast_rows        any: fp16 or bf16
#include "quant/quantize_rows.cuh"
#include "quant/quantize_sorted.cuh"
#include "quant/quantize_values.cuh"

template <QuantizeSpec S, Role R>
__device__ __forceinline__ void quantize_operand(const QuantizeParams& p, const QuantizeOperand& x,
                                                 int cta, QuantizeStorage<S>& storage) {
  if constexpr (!is_code(Rows<S, R>::kOut)) {
    cast_rows<S, R>(p, x, cta);
  } else if constexpr (R == Role::value) {
    quantize_values(p, cta, storage);
  } else {
    quantize_rows<S, R>(p, x, cta, storage);
  }
}

// Brings the tile of a CTA that starts later to the L2 cache: of a CTA's time, which loads,
// computes and stores, only the first part is the memory's, and there are no registers for more.
template <QuantizeSpec S>
__device__ __forceinline__ void prefetch_tile(const QuantizeOperand& x, int cta, int tokens,
                                              int head_dim) {
  if (cta >= x.heads * x.tiles) return;
  constexpr int kLine = 128;
  const TileSource from = tile_source<S.input>(x, cta, tokens);
  const int row_bytes = head_dim * bytes_of(S.input);
  const int lines = ceil_div(row_bytes, kLine);
  for (int i = threadIdx.x; i < min_of(tokens, from.count) * lines; i += S.num_threads) {
    ptx::prefetch_l2(from.x + i / lines * from.stride_token + i % lines * kLine);
  }
}

template <QuantizeSpec S>
__device__ __forceinline__ void quantize_operands(const QuantizeParams& p) {
  static_assert(sizeof(QuantizeStorage<S>) == S.smem_bytes,
                "cuattn/specs/quantize.py and QuantizeStorage disagree");
  extern __shared__ __align__(16) u8 smem[];
  QuantizeStorage<S>& storage = *reinterpret_cast<QuantizeStorage<S>*>(smem);
  const int q_end = p.q.heads * p.q.tiles;
  const int k_end = q_end + p.k.heads * p.k.tiles;
  const int cta = blockIdx.x;
  if (p.next_item && cta == 0 && threadIdx.x == 0) *p.next_item = 0;
  const int later = cta + p.ctas_at_a_time;
  if (cta < q_end) {
    prefetch_tile<S>(p.q, later, S.q_tile, p.head_dim);
    quantize_operand<S, Role::query>(p, p.q, cta, storage);
  } else if constexpr (S.k_scope == Scope::sorted) {
    prefetch_tile<S>(p.k, later - q_end, S.k_tile, p.head_dim);
    prefetch_tile<S>(p.v, later - q_end, S.v_tile, p.head_dim);
    quantize_sorted(p, cta - q_end, storage);
  } else if (cta < k_end) {
    prefetch_tile<S>(p.k, later - q_end, S.k_tile, p.head_dim);
    quantize_operand<S, Role::key>(p, p.k, cta - q_end, storage);
  } else {
    prefetch_tile<S>(p.v, later - k_end, S.v_tile, p.head_dim);
    quantize_operand<S, Role::value>(p, p.v, cta - k_end, storage);
  }
}
