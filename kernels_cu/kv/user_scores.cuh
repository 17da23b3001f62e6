// A caller's own expressions, asked about a score of a row and a token that nothing else hides.
#pragma once
#include "attn/user_functions.cuh"
#include "kv/block_cursor.cuh"

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
      // What smoothing took, unless a softcap has put it back; the log-sum-exp gets it in the end.
      const float shift = S.softcap ? 0.0f : queries.lse_shift[row];
      const float score = __fmaf_rn(x, kLn2, shift);
      const float y = user_score_mod(p.user, score, sequence, queries.head[row], query, token,
                                     query + apart);
      // Logits that stay as they are keep their bits.
      if (y != score) x = kLog2E * (y - shift);
      return x != -kInf;  // NaN is seen
    }
    return true;
  }
};
