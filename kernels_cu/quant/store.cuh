// What a lane makes of one chunk, written in one piece. Caches keep it: attention reads it next.
#pragma once
#include "quant/chunk.cuh"
#include "quant/codes.cuh"

template <int Words>
__device__ __forceinline__ void store_words(void* to, const u32 (&word)[Words]) {
  static_assert(Words == 1 || Words == 2 || Words == 4);
  if constexpr (Words == 1) {
    *static_cast<u32*>(to) = word[0];
  } else if constexpr (Words == 2) {
    *static_cast<uint2*>(to) = make_uint2(word[0], word[1]);
  } else {
    *static_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

template <Type Out, int Elements>
__device__ __forceinline__ void store_codes(void* to, const float (&x)[Elements]) {
  u32 packed[Elements / 4];
#pragma unroll
  for (int i = 0; i < Elements / 4; ++i) {
    packed[i] = pack_codes<Out>(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
  }
  if constexpr (Out != Type::int4) {
    store_words(to, packed);
  } else if constexpr (Elements == 4) {
    const u32 and_none[2] = {packed[0], 0};
    u32 four[1];
    pack_halves(four, and_none);
    *static_cast<u16*>(to) = static_cast<u16>(four[0]);
  } else {
    u32 eights[Elements / 8];
    pack_halves(eights, packed);
    store_words(to, eights);
  }
}

// fp16 or bf16, rounded to nearest even.
template <Type Out, int Elements>
__device__ __forceinline__ void store_values(void* to, const float (&x)[Elements]) {
  static_assert(Out == Type::fp16 || Out == Type::bf16);
  u32 packed[Elements / 2];
#pragma unroll
  for (int i = 0; i < Elements / 2; ++i) {
    packed[i] = Out == Type::fp16 ? ptx::pack_f16x2(x[2 * i], x[2 * i + 1])
                                  : ptx::pack_bf16x2(x[2 * i], x[2 * i + 1]);
  }
  store_words(to, packed);
}
