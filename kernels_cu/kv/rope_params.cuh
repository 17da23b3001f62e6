// What the kernels of the KV cache are told of positions; cuattn/compile/params.py reads it.
#pragma once
#include "numeric.cuh"

// Rotary embedding of new keys, or of queries: rope.cuh. Only for those whose spec asks for it.
struct RopeParams {
  const f32* cos;          // [num_positions, pairs]
  const f32* sin;
  const i32* positions;    // [batch, seqlen], or [seqlen] end to end; null: places in sequences
  i32 pairs;               // of channels, the first ones of a row
  i32 num_positions;       // at others a token is NaN
  i32 interleaved;         // pairs are neighbours; else channels i and pairs + i
};
