// Largest magnitudes of tokens of a KV cache, as their scales and zero points tell them: codes
// reach the ends of their range. reference/kv_operands.py has the same.
#pragma once
#include "kv/cached_keys.cuh"
#include "quant/per_row.cuh"
#include "quant/token_ranks.cuh"

// The least and the greatest code of a token of K or V.
template <OperandsSpec S>
__device__ __forceinline__ float2 code_range(int bits, bool zero, bool fine) {
  if (S.nested) return fine ? make_float2(-127.0f, 127.0f) : make_float2(-128.0f, 112.0f);
  if (bits == 8) return make_float2(-127.0f, 127.0f);
  return make_float2(zero ? -128.0f : -112.0f, 112.0f);  // 16 times what they are
}

template <int Groups, class Numbers>
__device__ __forceinline__ float largest_value(float2 range, Numbers numbers) {
  float largest = 0.0f;
#pragma unroll
  for (int g = 0; g < Groups; ++g) {
    const auto of = numbers(g);
    largest = ptx::max_nan(largest, fabsf(of.value(range.x)));
    largest = ptx::max_nan(largest, fabsf(of.value(range.y)));
  }
  return largest;
}

// Of all tokens of a block, of which there are `count`.
template <OperandsSpec S>
__device__ __forceinline__ void note_sizes(SortedTokens& sorted, const CachedBlock<S>& block,
                                           u32 fine, int count) {
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * kSortedBlock; i += S.num_threads) {
    const int token = i % kSortedBlock;
    const bool whole = fine >> token / kUnitTokens & 1;
    float amax;
    if (i < kSortedBlock) {
      amax = largest_value<Unit<S>::kKGroups>(
          code_range<S>(S.k_bits, false, whole),
          [&](int g) { return block.k_numbers(token, g, fine); });
    } else {
      amax = largest_value<Unit<S>::kVGroups>(
          code_range<S>(S.v_bits, S.v_zero, whole),
          [&](int g) { return block.v_numbers(token, g, fine); });
    }
    (i < kSortedBlock ? sorted.k_amax : sorted.v_amax)[token] =
        token < count ? __float_as_uint(amax) : kPastEnd;
  }
}

// Of keys that differ from their codes: the largest there is.
template <OperandsSpec S>
__device__ __forceinline__ void note_bare_keys(SortedTokens& sorted, const QuantizeOperand& x,
                                               const TileSource& tile, const CachedBlock<S>& block,
                                               u32 fine, const f32* offset, int bare) {
  using T = KeyRows<S>;
  T rows(x, tile);
  rows.tile.read(KeyCodes<S>{block, fine}, rows.order);
  const KeyValues<S, true> values(rows, block, fine, offset, bare);
  float amax[T::kRows] = {};
#pragma unroll
  for (int r = 0; r < T::kRows; ++r) {
    values.visit(r, [&](int, int, float x) { amax[r] = ptx::max_nan(amax[r], fabsf(x)); });
  }
  const PerRow<T::Lanes::kLanes, T::kRows> largest(amax, ptx::max_nan);
  largest.for_each([&](int r, float x) {
    if (rows.exists(r) && rows.row(r) < bare) sorted.k_amax[rows.row(r)] = __float_as_uint(x);
  });
}
