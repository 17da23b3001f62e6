// A caller's own expressions in the loop over scores: cuattn.ScoreMod and cuattn.MaskMod. The unit
// that is compiled defines those that its spec has (cuattn/specs/mods.py).
#pragma once
#include "params.cuh"

// What becomes of a logit, in the natural unit. `own` is the key that the row stands beside.
__device__ float user_score_mod(const AttentionParams& p, float score, int batch, int head, int q,
                                int kv, int own);
// What score_mod adds for a key more than for the one before it; of batch and head alone.
__device__ float user_score_slope(const AttentionParams& p, int batch, int head, int q, int kv,
                                  int own);
// Whether a row sees a key.
__device__ bool user_mask_mod(const AttentionParams& p, int batch, int head, int q, int kv,
                              int own);

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
      batch = batch_of_rows;
      head = head_of_rows;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        row[half] = min_of(first_row + 8 * half + lane / 4, p.seqlen_q - 1);
      }
    }
  }

  __device__ __forceinline__ float score(float x, int half, int key) const {
    return user_score_mod(*params, x, batch, head, row[half], key, own(half));
  }
  __device__ __forceinline__ float slope() const {
    return user_score_slope(*params, batch, head, 0, 0, 0);
  }
  __device__ __forceinline__ bool sees(int half, int key) const {
    return user_mask_mod(*params, batch, head, row[half], key, own(half));
  }

 private:
  __device__ __forceinline__ int own(int half) const {
    return row[half] + (params->seqlen_kv - params->seqlen_q);
  }
};
