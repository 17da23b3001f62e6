// A caller's own expressions in the loop over scores.
#pragma once
#include "attn/user_functions.cuh"
#include "params.cuh"

// Of the two rows of a lane. Rows that do not exist are the last one, so that expressions never
// meet an index that is none.
template <auto S>
struct UserRows {
  const AttentionParams* params;
  int batch;
  int head;
  int row[2];

  __device__ __forceinline__ UserRows(const AttentionParams& p, int batch_of_rows,
                                      int head_of_rows, int first_row, int lane) {
    if constexpr (S.rules.hide_anywhere()) {
      params = &p;
      batch = p.user_batch + batch_of_rows;
      head = p.user_head + head_of_rows;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        row[half] = min_of(first_row + 8 * half + lane / 4, p.seqlen_q - 1);
      }
    }
  }

  __device__ __forceinline__ float score(float x, int half, int key) const {
    return user_score_mod(params->user, x, batch, head, row[half], key, own(half));
  }
  __device__ __forceinline__ float slope() const {
    return user_score_slope(params->user, batch, head, 0, 0, 0);
  }
  __device__ __forceinline__ bool sees(int half, int key) const {
    return user_mask_mod(params->user, batch, head, row[half], key, own(half));
  }

 private:
  __device__ __forceinline__ int own(int half) const {
    return row[half] + (params->seqlen_kv - params->seqlen_q);
  }
};
