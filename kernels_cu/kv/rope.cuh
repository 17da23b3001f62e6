// Rotary embedding: pairs of channels of a token turn by angles of its position, in float32, before
// anything else is done to them. reference/rope.py has the same, operation by operation.
#pragma once
#include "attn/elements.cuh"
#include "kv/kv_params.cuh"

// The position of one of `tokens` rows that a sequence has in the call.
__device__ __forceinline__ int position_of(const RopeParams& rope, int sequence, int row,
                                           int tokens, int by_place) {
  return rope.positions ? rope.positions[static_cast<i64>(sequence) * tokens + row] : by_place;
}

template <Type In>
__device__ __forceinline__ float element_of(const char* row, int channel) {
  const auto bits = __ldg(reinterpret_cast<const typename ElementOf<In>::type*>(row) + channel);
  if constexpr (In == Type::fp32) {
    return bits;
  } else {
    float pair[2];
    if constexpr (In == Type::fp16) {
      ptx::widen_f16x2(pair, bits);
    } else {
      ptx::widen_bf16x2(pair, bits);
    }
    return pair[0];
  }
}

// What turns the channels of one row of the caller's array. The other channel of a pair may be with
// another lane, and is read again.
template <Type In>
struct TokenTurn {
  const RopeParams& rope;
  const char* row;
  int channels;  // that turn; 0 of a row that is not there
  i64 first;     // of the position in the tables; negative if it is not in them

  __device__ __forceinline__ TokenTurn(const RopeParams& rope, const char* row, int position,
                                       bool exists)
      : rope(rope),
        row(row),
        channels(exists ? 2 * rope.pairs : 0),
        first(position < rope.num_positions ? static_cast<i64>(position) * rope.pairs : -1) {}

  __device__ __forceinline__ float operator()(int channel, float x) const {
    if (channel >= channels) return x;
    if (first < 0) return __int_as_float(0x7fffffff);
    const bool second = rope.interleaved ? channel % 2 != 0 : channel >= rope.pairs;
    const int pair = rope.interleaved ? channel / 2 : second ? channel - rope.pairs : channel;
    const int other = rope.interleaved ? channel ^ 1 : second ? pair : pair + rope.pairs;
    const float along = __fmul_rn(x, __ldg(rope.cos + first + pair));
    const float across = __fmul_rn(element_of<In>(row, other), __ldg(rope.sin + first + pair));
    return second ? __fadd_rn(along, across) : __fsub_rn(along, across);
  }
};
