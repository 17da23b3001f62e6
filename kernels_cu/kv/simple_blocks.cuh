// Blocks of nested codes of which no unit has lower halves, no key lacks the offset and every row
// sees all tokens: all but the first and the newest ones. Known before the loop, they have a way
// through it without any of these.
#pragma once
#include "kv/fine_units.cuh"
#include "kv/visible_tokens.cuh"
#include "ptx/registers.cuh"

template <DecodeSpec S>
struct SimpleBlocks {
  static constexpr bool kAny = S.nested && !kHides<S>;
  int begin = 0;
  int end = 0;

  // `coarse` and `bare` are those of the sequence.
  __device__ __forceinline__ SimpleBlocks(const DecodeParams& p, int length, int coarse,
                                          int bare) {
    if constexpr (!kAny) return;
    const int seen = p.is_causal ? length - p.seqlen_q + 1 : length;  // by the first query
    const int first = max_of(p.store.first_units, ceil_div(bare, kUnitTokens));
    begin = ptx::opaque(ceil_div(first, kBlockUnits));
    end = ptx::opaque(min_of(coarse / kBlockUnits, max_of(seen, 0) / kKvBlock));
  }

  __device__ __forceinline__ bool has(int block) const {
    return kAny && block >= begin && block < end;
  }
};
