// Which keys a query row sees: a prefix of the keys, aligned at the bottom right when causal.
#pragma once
#include "attn/shape.cuh"
#include "params.cuh"

// The keys that a row sees under a causal mask are so many, not more than there are; none if it is
// not positive. Lengths are subtracted first: of 2^30 rows and keys the sum is no int.
__host__ __device__ constexpr int seen_keys(int row, int seqlen_q, int seqlen_kv) {
  return row + 1 + (seqlen_kv - seqlen_q);
}

// Blocks of keys that one CTA visits: the first `masked` ones are seen whole by every row.
struct BlockRange {
  int masked;
  int end;
};

template <AttentionSpec S>
__device__ __forceinline__ BlockRange block_range(const AttentionParams& p, int first_row) {
  int seen_by_first = p.seqlen_kv;
  int seen_by_last = p.seqlen_kv;
  if constexpr (S.is_causal) {
    const int last_row = min_of(first_row + Shape<S>::kRows, p.seqlen_q) - 1;
    const auto seen_by = [&](int row) {
      return min_of(max_of(seen_keys(row, p.seqlen_q, p.seqlen_kv), 0), p.seqlen_kv);
    };
    seen_by_first = seen_by(first_row);
    seen_by_last = seen_by(last_row);
  }
  return {seen_by_first / S.block_kv, ceil_div(seen_by_last, static_cast<i32>(S.block_kv))};
}

// The keys of one block that the two rows of a lane see. S is the spec of either family.
template <auto S>
struct Mask {
  int limit[2];  // MMA column 8 * key_tile + e, or a token of sorted ones, is seen if it is below
  bool ordered;  // sorted keys have an order of their own

  __device__ __forceinline__ Mask(const AttentionParams& p, int first_row, int block, int lane)
      : ordered(p.order != nullptr) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int seen = p.seqlen_kv;
      if constexpr (S.is_causal) {
        const int row = first_row + 8 * half + lane / 4;
        seen = min_of(seen, seen_keys(row, p.seqlen_q, p.seqlen_kv));
      }
      const int first = S.k_scope == Scope::sorted ? 0 : 2 * (lane % 4);
      limit[half] = seen - block * S.block_kv - first;
    }
  }

  __device__ __forceinline__ bool sees(int key_tile, int element) const {
    return 8 * key_tile + element % 2 < limit[element / 2];
  }
  __device__ __forceinline__ bool sees_token(int token, int half) const {
    return token < limit[half];
  }
};
