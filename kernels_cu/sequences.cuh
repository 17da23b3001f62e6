// Sequences of a batch whose lengths are in memory only: where each begins, and how long it is.
//
// Arrays of a caller have all tokens end to end, or each sequence in a slot of its own. Blocks of
// kTokenPad tokens, in which kernels write, must not straddle sequences: the one that begins at
// token t of all has its first block at t / kTokenPad + its number, which is behind the last block
// of the one before. So all of them take tokens / kTokenPad + batch blocks.
#pragma once
#include "layout.cuh"
#include "numeric.cuh"

struct Sequence {
  int first;   // token of all that are end to end
  int length;
  int block;   // of those in whole blocks
};

// `bounds` are [batch + 1] tokens at which sequences begin and end, of `tokens` in all, or null;
// `used` is how many of each count, [batch], or null. None has more than `most`. Numbers that make
// no sense lead nowhere outside the arrays.
__device__ __forceinline__ Sequence sequence_of(const i32* bounds, const i32* used, int batch,
                                                int tokens, int most) {
  Sequence x = {0, most, 0};
  if (bounds) {
    x.first = min_of(max_of(__ldg(bounds + batch), 0), tokens);
    const int end = min_of(__ldg(bounds + batch + 1), tokens);
    x.length = min_of(max_of(end - x.first, 0), most);
    x.block = x.first / kTokenPad + batch;
  }
  if (used) x.length = min_of(x.length, max_of(__ldg(used + batch), 0));
  return x;
}

// From where all heads of all batches would be, `pitch` tokens each, to where a sequence's are: its
// heads begin at `first` of the tokens that its batch shares with the others. Added to an address,
// this leaves heads to be counted through the batch as ever.
__device__ __forceinline__ i64 shift_of(int first, int batch, int heads, int pitch) {
  return first - static_cast<i64>(batch) * heads * pitch;
}
