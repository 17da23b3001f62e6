// Which query of which head a row of a CTA is.
#pragma once
#include "kv/kv_params.cuh"
#include "kv/kv_spec.cuh"

// Rows of a head of K and V are ordered by query, then by the heads of its group.
struct RowPlace {
  int query;
  int head;  // of Q
  bool exists;

  template <DecodeSpec S>
  static __device__ __forceinline__ RowPlace of(const DecodeParams& p, int head, int row) {
    const int index = head % p.row_tiles * S.rows + row;
    return {index / p.heads_per_kv, head / p.row_tiles * p.heads_per_kv + index % p.heads_per_kv,
            index < p.heads_per_kv * p.seqlen_q};
  }

  // Tokens that the row sees; all of them if it does not exist.
  __device__ __forceinline__ int sees(const DecodeParams& p, int length) const {
    if (!p.is_causal || !exists) return length;
    return min_of(max_of(length - p.seqlen_q + 1 + query, 0), length);
  }
};
