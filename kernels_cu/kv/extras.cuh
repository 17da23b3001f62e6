// Arrays that a call may have, sinks, slopes of ALiBi and masks: their elements, and what a CTA
// notes of them and for expressions.
#pragma once
#include "attn/elements.cuh"
#include "kv/kv_spec.cuh"

template <Extra E>
constexpr bool kHas = E != Extra::none;

// The type of the elements of floats.
template <Extra E>
constexpr Type kTypeOf = E == Extra::fp16   ? Type::fp16
                         : E == Extra::bf16 ? Type::bf16
                                            : Type::fp32;

template <Extra E>
constexpr int kBytesOf = E == Extra::boolean ? 1 : bytes_of(kTypeOf<E>);

// An element of an array of floats.
template <Extra E>
__device__ __forceinline__ float load_extra(const void* x, i64 element) {
  static_assert(kHas<E> && E != Extra::boolean);
  const auto bits = __ldg(static_cast<const typename ElementOf<kTypeOf<E>>::type*>(x) + element);
  if constexpr (E == Extra::fp32) {
    return bits;
  } else {
    float pair[2];
    if constexpr (E == Extra::fp16) {
      ptx::widen_f16x2(pair, bits);
    } else {
      ptx::widen_bf16x2(pair, bits);
    }
    return pair[0];
  }
}

__device__ __forceinline__ bool load_boolean(const void* x, i64 element) {
  return __ldg(static_cast<const u8*>(x) + element) != 0;
}

// What stands for "hidden" in a mask of floats, as everything below it does, -inf too.
template <Extra E>
__device__ constexpr float kHidden = -kLargest<kTypeOf<E>>;

// Whether a call has expressions of the caller's.
template <DecodeSpec S>
constexpr bool kAsks = S.score_mod || S.mask_mod;

// In shared memory, what ALiBi, a mask and expressions have for each of some rows; nothing if there
// is none.
template <int Rows, bool Any>
struct RowSlopes {
  f32 slope[Rows];  // ALiBi's, times log2 e
  i32 own[Rows];    // the tokens that the rows stand beside
};
template <int Rows>
struct RowSlopes<Rows, false> {};
template <int Rows, bool Any>
struct MaskRows {
  const void* mask[Rows];  // at the first column
};
template <int Rows>
struct MaskRows<Rows, false> {};
template <int Rows, bool Any>
struct RowIndices {
  i32 query[Rows];
  i32 head[Rows];  // of Q
};
template <int Rows>
struct RowIndices<Rows, false> {};
