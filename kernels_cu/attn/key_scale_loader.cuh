// The threads' copies of what differs from key to key, or from block to block, to shared memory.
#pragma once
#include "attn/key_scales.cuh"
#include "attn/sequence_params.cuh"
#include "ptx/cp_async.cuh"

// Copies what a block has.
template <AttentionSpec S>
struct KeyScaleLoader {
  using H = Shape<S>;
  using Scales = KeyScales<S>;
  const f32* k;      // of this head
  const f32* v;
  const f32* delta;  // of these rows
  const u8* order;
  i64 padded;        // keys

  __device__ __forceinline__ KeyScaleLoader(const AttentionParams& p, i64 batch_head,
                                            i64 batch_kv_head, int first_row)
      : padded(ceil_div(key_pitch<S>(p), kTokenPad) * kTokenPad) {
    static_assert(kQBlock % H::kRows == 0, "a CTA's rows have one mean of Q");
    const int blocks = ceil_div(key_pitch<S>(p), static_cast<i32>(S.block_kv));
    const i64 of_head = H::kThreadK ? padded / 16 : H::kTokenK ? H::kGroups * padded : blocks;
    k = p.k_scale + batch_kv_head * (H::kSorted ? kPlaceScales * blocks : of_head);
    v = p.v_scale +
        batch_kv_head * (H::kTokenV ? 3 * padded : H::kSorted ? 3 * kPlaceScales * blocks : blocks);
    order = p.order ? p.order + batch_kv_head * padded : nullptr;
    delta = p.delta +
            (batch_head * delta_rows<S>(p) + first_row / kQBlock) * delta_pitch<S>(p);
  }

  // Where the logarithms of V's scales of a block begin. Unsigned, because of 2^30 keys there are
  // 3 * 2^30 numbers.
  static __host__ __device__ constexpr u32 log2_v(int block) {
    return (3u * block + 1) * S.block_kv;
  }

  // `to` is the address of the block's KeyScales. `chunk` is the thread's own number, times 16: the
  // offset at which it puts its first 16 bytes into a tile of keys. Unlike the thread's index it is
  // at hand.
  __device__ __forceinline__ void load(u32 to, int block, u32 chunk) const {
    constexpr u32 kBytes = S.block_kv * sizeof(f32);
    const auto copy = [&](u32 offset, const f32* from) {
      ptx::cp_async_16(to + offset + chunk, reinterpret_cast<const char*>(from) + chunk);
    };
    if constexpr (H::kTokenK) {
      if (chunk < kBytes) {
        const int key = block * S.block_kv;
#pragma unroll
        for (int group = 0; group < (H::kThreadK ? 0 : H::kGroups); ++group) {
          copy(Scales::kK + group * kBytes, k + group * padded + key);
        }
        if constexpr (H::kTokenV) {
          const f32* log2 = v + log2_v(block);
          copy(Scales::kV, log2);
          copy(Scales::kInverse, log2 + S.block_kv);
        }
        if constexpr (S.q_smooth) copy(0, delta + key);
      }
      if constexpr (H::kThreadK) {
        if (chunk < H::kKeyScales * sizeof(f32)) copy(Scales::kK, k + block * H::kKeyScales);
      }
    } else if constexpr (H::kSorted) {
      if (chunk < 2 * kPlaceScales * sizeof(f32)) {
        copy(Scales::kV, v + (3 * block + 1) * kPlaceScales);
      }
      if (chunk < kPlaceScales * sizeof(f32)) copy(Scales::kK, k + block * kPlaceScales);
      if (order && chunk < kSortedBlock) {
        ptx::cp_async_16(to + Scales::kOrder + chunk, order + block * kSortedBlock + chunk);
      }
    } else if constexpr (H::kBlockK) {
      if (chunk == 0) ptx::cp_async_4(to + Scales::kK, k + block);
    }
    if constexpr (H::kBlockV) {
      if (chunk == 0) ptx::cp_async_4(to + Scales::kV, v + block);
    }
  }
};
