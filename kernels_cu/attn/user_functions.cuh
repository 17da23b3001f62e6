// A caller's own expressions: cuattn.ScoreMod and cuattn.MaskMod. The unit that is compiled defines
// those that its spec has (cuattn/specs/mods.py).
#pragma once
#include "user_value.cuh"

// What becomes of a logit, in the natural unit. `own` is the key that the row stands beside.
__device__ float user_score_mod(const UserValue* values, float score, int batch, int head, int q,
                                int kv, int own);
// What score_mod adds for a key more than for the one before it; of batch and head alone.
__device__ float user_score_slope(const UserValue* values, int batch, int head, int q, int kv,
                                  int own);
// Whether a row sees a key.
__device__ bool user_mask_mod(const UserValue* values, int batch, int head, int q, int kv, int own);
