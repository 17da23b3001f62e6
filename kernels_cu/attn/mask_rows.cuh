// Where an attn_mask has the two rows of a lane.
#pragma once
#include "attn/user_mods.cuh"
#include "attn/widened.cuh"
#include "params.cuh"

// A float of a type that only the call knows: AttentionParams::sinks_type.
__device__ __forceinline__ float widened(const void* from, i64 index, int type) {
  return type == 0   ? widened<Type::fp32>(from, index)
         : type == 1 ? widened<Type::fp16>(from, index)
                     : widened<Type::bf16>(from, index);
}

constexpr Type type_of(MaskKind kind) {
  return kind == MaskKind::fp16 ? Type::fp16 : kind == MaskKind::bf16 ? Type::bf16 : Type::fp32;
}

// The least finite number of a type stands for -inf.
template <Type T>
constexpr float kLeast = T == Type::fp16   ? -65504.0f
                         : T == Type::bf16 ? -0x1.fep127f
                                           : -0x1.fffffep127f;

template <auto S>
struct MaskRows {
  static constexpr int kWords = S.block_kv / 32;
  static constexpr Type kType = type_of(S.rules.attn_mask);
  const void* mask;
  i64 row[2];  // offsets: of bits in words, else in elements
  i64 key_stride;
  bool pairs;  // an even key and its neighbour are one aligned load
  int first;   // the key of the first column, if S.rules.mask_last; it may be before all keys
  UserRows<S> user;

  __device__ __forceinline__ MaskRows(const AttentionParams& p, int batch, int head, int first_row,
                                      int lane)
      : user(p, batch, head, first_row, lane) {
    if constexpr (S.rules.mapped()) {
      mask = p.attn_mask;
      key_stride = p.mask_stride_key;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = min_of(first_row + 8 * half + lane / 4, p.seqlen_q - 1);
        row[half] = batch * p.mask_stride_batch + head * p.mask_stride_head + i * p.mask_stride_row;
        if constexpr (S.rules.mask_last) {
          first = p.seqlen_kv - p.mask_columns;
          row[half] -= first * key_stride;
        }
      }
      const i64 offsets = p.mask_stride_batch | p.mask_stride_head | p.mask_stride_row;
      pairs = key_stride == 1 && p.seqlen_kv % 2 == 0 && offsets % 2 == 0 &&
              reinterpret_cast<u64>(mask) % (2 * bytes_of(kType)) == 0;
      if constexpr (S.rules.mask_last) pairs = pairs && first % 2 == 0;
    }
  }

  // Of a block: rows of bits are padded to 128 keys.
  __device__ __forceinline__ void load_bits(u32 (&bits)[kWords], int half, int block) const {
    const u32* from = static_cast<const u32*>(mask) + row[half] + block * kWords;
    if constexpr (kWords == 4) {
      const uint4 x = __ldg(reinterpret_cast<const uint4*>(from));
      bits[0] = x.x;
      bits[1] = x.y;
      bits[2] = x.z;
      bits[3] = x.w;
    } else {
      const uint2 x = __ldg(reinterpret_cast<const uint2*>(from));
      bits[0] = x.x;
      bits[1] = x.y;
    }
  }

  // What the logits of an even key and of the next get, in the natural unit; -inf if it is hidden.
  // Keys beyond the last have any.
  __device__ __forceinline__ float2 bias_of_pair(int half, int key, int seqlen_kv) const {
    if (!pairs) return {bias(half, key, seqlen_kv), bias(half, key + 1, seqlen_kv)};
    if (key >= seqlen_kv || is_before(key)) return {};
    float x[2];
    const i64 pair = (row[half] + key) / 2;
    if constexpr (kType == Type::fp32) {
      const float2 of = __ldg(static_cast<const float2*>(mask) + pair);
      x[0] = of.x;
      x[1] = of.y;
    } else {
      const u32 bits = __ldg(static_cast<const u32*>(mask) + pair);
      kType == Type::fp16 ? ptx::widen_f16x2(x, bits) : ptx::widen_bf16x2(x, bits);
    }
    return {hidden_if_least(x[0]), hidden_if_least(x[1])};
  }

  __device__ __forceinline__ float bias(int half, int key, int seqlen_kv) const {
    if (key >= seqlen_kv || is_before(key)) return 0.0f;
    return hidden_if_least(widened<kType>(mask, row[half] + key * key_stride));
  }

 private:
  // Whether the mask has no column for a key.
  __device__ __forceinline__ bool is_before(int key) const {
    return S.rules.mask_last && key < first;
  }
  static __device__ __forceinline__ float hidden_if_least(float x) {
    return x <= kLeast<kType> ? -kInf : x;
  }
};
