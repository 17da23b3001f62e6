// A caller's own expressions, asked about a score of a row and a token that nothing else hides.
#pragma once
#include "attn/user_functions.cuh"
#include "kv/block_cursor.cuh"

// Whether logits have what smoothing K took from them before the softmax takes them.
template <DecodeSpec S>
constexpr bool kUnshifted = S.softcap || S.score_mod;

template <DecodeSpec S>
struct UserScores {
  int sequence;
  int apart;  // of a query's number from its own token's

  __device__ __forceinline__ void start(const DecodeParams& p, const BlockCursor& at) {
    sequence = at.sequence;
    apart = at.length - p.seqlen_q;
  }

  // Whether the row sees the token; `x`, the exponent of 2, becomes what score_mod makes of it.
  __device__ __forceinline__ bool sees(float& x, const DecodeParams& p, const Queries<S>& queries,
                                       int row, int token) const {
    if constexpr (S.mask_mod) {
      const int query = queries.query[row];
      if (!user_mask_mod(p.user, sequence, queries.head[row], query, token, query + apart)) {
        return false;
      }
    }
    if constexpr (S.score_mod) {
      const int query = queries.query[row];
      // A softcap has put back what smoothing took.
      const float score = __fmaf_rn(x, kLn2, S.softcap ? 0.0f : queries.lse_shift[row]);
      x = kLog2E * user_score_mod(p.user, score, sequence, queries.head[row], query, token,
                                  query + apart);
      return x != -kInf;  // NaN is seen
    }
    return true;
  }
};
