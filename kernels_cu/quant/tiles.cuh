// Tiles of an operand: a number of tokens of one head each.
#pragma once
#include "quant/chunk.cuh"
#include "quant/quantize_params.cuh"

// The part of an operand that one CTA owns.
struct TileSource {
  const char* x;     // first row
  i64 stride_token;  // bytes
  int head;          // of all heads of all batches
  int first;         // token
  int count;         // tokens from there to the end of the head, perhaps more than the tile has
};

// Divides by a number that the compiler does not know; if it does so `Often`, by its inverse.
template <bool Often>
struct Divisor {
  u32 by;
  u32 inverse;  // how often it goes into 2^32 - 1

  __device__ __forceinline__ explicit Divisor(u32 by)
      : by(by), inverse(Often ? 0xffffffffu / by : 0) {}

  // Quotient and remainder.
  __device__ __forceinline__ u32 divide(u32 x, u32& rest) const {
    u32 quotient = Often ? __umulhi(x, inverse) : x / by;
    rest = x - quotient * by;
    if (Often && rest >= by) {  // the quotient was 1 too small
      rest -= by;
      ++quotient;
    }
    return quotient;
  }
};

struct TilePlace {
  int head;  // of all heads of all batches
  u32 batch;
  u32 head_of_batch;
  int first;  // token
};

// The tiles of an operand that there is, of so many tokens each.
template <int Tokens, bool Often>
struct Tiles {
  Divisor<Often> tiles;  // of a head
  Divisor<Often> heads;
  int count;

  __device__ __forceinline__ explicit Tiles(const QuantizeOperand& x)
      : tiles(x.tiles), heads(x.num_heads), count(x.heads * x.tiles) {}

  __device__ __forceinline__ TilePlace operator[](int cta) const {
    u32 tile, head_of_batch;
    const u32 head = tiles.divide(cta, tile);
    const u32 batch = heads.divide(head, head_of_batch);
    return {static_cast<int>(head), batch, head_of_batch, static_cast<int>(tile) * Tokens};
  }
};

template <Type In>
__device__ __forceinline__ TileSource tile_source(const QuantizeOperand& x,
                                                  const TilePlace& at) {
  const i64 element = static_cast<i64>(at.batch) * x.stride_batch +
                      at.head_of_batch * x.stride_head + at.first * x.stride_token;
  return {static_cast<const char*>(x.x) + element * bytes_of(In), x.stride_token * bytes_of(In),
          at.head, at.first, x.seqlen - at.first};
}
