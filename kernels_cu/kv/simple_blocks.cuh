// Blocks of nested codes of which no unit has lower halves and every row sees all tokens: all but
// the first and the newest ones. Known before the loop, they have a way through it without either.
#pragma once
#include "kv/fine_units.cuh"
#include "kv/visible_tokens.cuh"

template <DecodeSpec S>
struct SimpleBlocks {
  static constexpr bool kAny = S.nested && !kHides<S>;
  int begin = 0;
  int end = 0;

  // `coarse` is that of the sequence.
  __device__ __forceinline__ SimpleBlocks(const DecodeParams& p, int length, int coarse) {
    if constexpr (!kAny) return;
    const int seen = p.is_causal ? length - p.seqlen_q + 1 : length;  // by the first query
    begin = ceil_div(p.store.first_units, kBlockUnits);
    end = min_of(coarse / kBlockUnits, max_of(seen, 0) / kKvBlock);
  }

  __device__ __forceinline__ bool has(int block) const {
    return kAny && block >= begin && block < end;
  }
};
