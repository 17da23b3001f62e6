// 16 bytes of an input row, held as they lie in memory until they are needed as floats. Of a KV
// cache they are codes.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"
#include "quant/word.cuh"
#include "spec.cuh"

// Codes of 8 bits as floats: the lowest byte of a float of 2^23 counts ones.
__device__ __forceinline__ void widen_codes(float (&x)[4], u32 word) {
  const u32 unsigned_codes = word ^ 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = __uint_as_float(__byte_perm(unsigned_codes, 0x4b000000u, 0x7440 + i)) - 0x1.0001p23f;
  }
}

template <Type In>
struct Chunk {
  static constexpr int kElements = 16 / bytes_of(In);
  static constexpr int kPerWord = 4 / bytes_of(In);
  u32 word[4] = {0, 0, 0, 0};

  // Zeros unless `valid`. `Once` tells the caches that nobody reads the input again.
  template <bool Aligned, bool Once>
  __device__ __forceinline__ void load(const char* from, bool valid) {
    if constexpr (Aligned) {
      if constexpr (Once) {
        ptx::load_once_16(word, from, valid);
      } else {
        ptx::load_16(word, from, valid);
      }
    } else if (valid) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if constexpr (kPerWord == 1) {
          word[w] = __ldg(reinterpret_cast<const u32*>(from) + w);
        } else {
          const u16* pair = reinterpret_cast<const u16*>(from) + 2 * w;
          word[w] = __ldg(pair) | static_cast<u32>(__ldg(pair + 1)) << 16;
        }
      }
    }
  }

  __device__ __forceinline__ void widen(float (&x)[kPerWord], int w) const {
    if constexpr (In == Type::fp16) {
      ptx::widen_f16x2(x, word[w]);
    } else if constexpr (In == Type::bf16) {
      ptx::widen_bf16x2(x, word[w]);
    } else if constexpr (In == Type::int8) {
      widen_codes(x, word[w]);
    } else {
      x[0] = __uint_as_float(word[w]);
    }
  }

  // The largest magnitude at each place of a word, of the chunk and of `largest`.
  __device__ __forceinline__ u32 amax(u32 largest) const {
#pragma unroll
    for (int w = 0; w < 4; ++w) largest = word_max<In>(largest, word_abs<In>(word[w]));
    return largest;
  }
};

// `from` is a multiple of 16 bytes.
template <int Count>
__device__ __forceinline__ void load_floats(float (&x)[Count], const f32* from) {
#pragma unroll
  for (int i = 0; i < Count; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    x[i] = four.x;
    x[i + 1] = four.y;
    x[i + 2] = four.z;
    x[i + 3] = four.w;
  }
}

// Of StatsOperand or QuantizeOperand: where a token's row begins; `head` counts through the batch.
template <Type In, class Operand>
__device__ __forceinline__ const char* row_address(const Operand& x, int head, int token) {
  const u32 heads = x.num_heads;
  const i64 batch = static_cast<u32>(head) / heads;
  const i64 element = batch * x.stride_batch + static_cast<u32>(head) % heads * x.stride_head +
                      token * x.stride_token;
  return static_cast<const char*>(x.x) + element * bytes_of(In);
}
