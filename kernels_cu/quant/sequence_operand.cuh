// The operand of a quantizing kernel that is one sequence's, if lengths are in memory only.
#pragma once
#include "quant/chunk.cuh"
#include "quant/quantize_params.cuh"
#include "quant/quantize_spec.cuh"
#include "sequences.cuh"

// Makes an operand of any kernel that of a sequence: its input begins there, and is as long. `head`
// counts through the batch.
template <Type In, class Operand>
__device__ __forceinline__ Sequence narrow(Operand& x, int head) {
  const int batch = static_cast<u32>(head) / static_cast<u32>(x.num_heads);
  const Sequence at = sequence_of(x.cu_seqlens, x.seqused, batch, x.total, x.seqlen);
  x.seqlen = at.length;
  x.x = static_cast<const char*>(x.x) + at.first * x.stride_token * bytes_of(In);
  return at;
}

// Tokens of a head in what the quantizer writes.
template <QuantizeSpec S>
__device__ __forceinline__ int pitch_of(const QuantizeOperand& x) {
  return S.varlen ? x.pitch : x.seqlen;
}
template <QuantizeSpec S>
__device__ __forceinline__ int blocks_of(const QuantizeOperand& x) {
  return ceil_div(pitch_of<S>(x), kTokenPad);
}
