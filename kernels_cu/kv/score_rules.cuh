// The shift of first tokens, softcap and then ALiBi: what becomes of scores before tokens are
// hidden. And what has to be known of rows for that and for a mask.
#pragma once
#include "kv/lane_tokens.cuh"
#include "kv/partition.cuh"

// Notes what ALiBi, a mask and expressions have for a row of `at`. By one lane.
template <DecodeSpec S>
__device__ __forceinline__ void note_extras(const DecodeParams& p, Queries<S>& to,
                                            const BlockCursor& at, const RowPlace& place,
                                            int row) {
  if constexpr (kHas<S.alibi_slopes>) {
    const i64 element = at.sequence * p.alibi_slopes_stride_batch +
                        place.head * p.alibi_slopes_stride_head;
    float slope = 0.0f;
    if (place.exists) slope = load_extra<S.alibi_slopes>(p.alibi_slopes, element) * kLog2E;
    to.slope[row] = slope;
    to.own[row] = place.own(p, at.length);
  }
  if constexpr (kHas<S.attn_mask>) {
    const i64 element = at.sequence * p.attn_mask_stride_batch +
                        place.head * p.attn_mask_stride_head +
                        place.query * p.attn_mask_stride_row;
    // Of rows that do not exist any element will do that does.
    to.mask[row] = static_cast<const char*>(p.attn_mask) +
                   (place.exists ? element : 0) * kBytesOf<S.attn_mask>;
  }
  if constexpr (kAsks<S>) {
    // Rows that do not exist are of the last query, and no head of another group.
    to.query[row] = min_of(place.query, p.seqlen_q - 1);
    to.head[row] = place.head;
  }
}

// Takes from the scores of `bare` first tokens, whose keys have no offset, what the offset took
// from those of all others: it is added to all of them in the end. Units have them or not: pages
// that were evicted are whole ones. `first` is the number of the warp's first token.
template <DecodeSpec S>
__device__ __forceinline__ void shift_first_tokens(typename DecodeShape<S>::Scores& s,
                                                 const Queries<S>& queries, int first, int bare,
                                                 int lane) {
  if (first >= bare) return;
  DecodeShape<S>::for_rows([&](int tile, int half) {
    const float shift = queries.lse_shift[16 * tile + 8 * half + lane / 4];
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
      const bool is_bare = first + i / 4 * kUnitTokens < bare;
      float& x = score_of<S>(s[tile], i / 4, i % 4, half);
      x = __fmaf_rn(is_bare ? shift : 0.0f, S.softcap ? -1.0f : -kLog2E, x);
    }
  });
}

// c tanh(s / c) of a score s with all that K's offset took from it; `unit_scores` and
// `store_query` have divided both by c.
template <DecodeSpec S>
__device__ __forceinline__ void cap_scores(typename DecodeShape<S>::Scores& s,
                                           const DecodeParams& p, const Queries<S>& queries,
                                           int lane) {
  const float cap = p.softcap * kLog2E;
  DecodeShape<S>::for_rows([&](int tile, int half) {
    const float shift = queries.lse_shift[16 * tile + 8 * half + lane / 4];
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
      float& x = score_of<S>(s[tile], i / 4, i % 4, half);
      x = cap * tanhf(x + shift);
    }
  });
}

// Takes a row's slope times the distance of each token from the row's own. `first` is the number of
// the warp's first token.
template <DecodeSpec S>
__device__ __forceinline__ void add_alibi(typename DecodeShape<S>::Scores& s,
                                          const Queries<S>& queries, int first, int lane) {
  DecodeShape<S>::for_rows([&](int tile, int half) {
    const int row = 16 * tile + 8 * half + lane / 4;
    const float slope = queries.slope[row];
    const int away = queries.own[row] - first;
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
      const int token = i / 4 * kUnitTokens + token_of(i % 4, lane);
      float& x = score_of<S>(s[tile], i / 4, i % 4, half);
      x = __fmaf_rn(-slope, fabsf(static_cast<float>(away - token)), x);
    }
  });
}

// Does the first, but for `Simple` blocks, and both others where they are asked for.
template <DecodeSpec S, bool Simple>
__device__ __forceinline__ void apply_rules(typename DecodeShape<S>::Scores& s,
                                            const DecodeParams& p, const Queries<S>& queries,
                                            int first, int bare, int lane) {
  if constexpr (!Simple) shift_first_tokens<S>(s, queries, first, bare, lane);
  if constexpr (S.softcap) cap_scores<S>(s, p, queries, lane);
  if constexpr (kHas<S.alibi_slopes>) add_alibi<S>(s, queries, first, lane);
}
