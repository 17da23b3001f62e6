// Scales that differ from key to key, or from block to block, in shared memory.
#pragma once
#include "attn/shape.cuh"
#include "layout.cuh"
#include "params.cuh"
#include "ptx/cp_async.cuh"

template <AttentionSpec S>
struct alignas(16) KeyScales {
  using H = Shape<S>;
  static constexpr int kPerToken = H::kTokenK ? S.block_kv : 4;
  float k[kPerToken];                            // or only k[0], of the whole block
  float log2_v[H::kTokenV ? S.block_kv : 4];     // V's scale rides in the exponent
  float inverse[H::kTokenV ? S.block_kv : 4];

  __device__ __forceinline__ float block_scale() const { return k[0]; }

  // Of the two columns that a lane sees of an MMA tile.
  __device__ __forceinline__ float2 inverse_v(int key_tile, int lane) const {
    return pair(inverse, key_tile, lane);
  }

  // s becomes the exponent: (s * sk) * (softmax_scale * log2 e * sq) + log2 sv.
  __device__ __forceinline__ void apply(typename H::Scores& s, const float (&row_scale)[2],
                                        int lane) const {
#pragma unroll
    for (int key_tile = 0; key_tile < H::kKeyTiles; ++key_tile) {
      const float2 sk = pair(k, key_tile, lane);
      const float2 log2_sv = H::kTokenV ? pair(log2_v, key_tile, lane) : make_float2(0.0f, 0.0f);
      const float start[2] = {-kMagic * sk.x, -kMagic * sk.y};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = s[key_tile][e];
        x = __fmaf_rn(x, e % 2 ? sk.y : sk.x, start[e % 2]);
        x = __fmaf_rn(x, row_scale[e / 2], e % 2 ? log2_sv.y : log2_sv.x);
      }
    }
  }

 private:
  static __device__ __forceinline__ float2 pair(const float* of, int key_tile, int lane) {
    return *reinterpret_cast<const float2*>(of + 8 * key_tile + 2 * (lane % 4));
  }
};

// Copies the scales of a block.
template <AttentionSpec S>
struct KeyScaleLoader {
  using H = Shape<S>;
  const f32* k;  // of this head
  const f32* v;

  __device__ __forceinline__ KeyScaleLoader(const AttentionParams& p, i64 batch_kv_head) {
    const i64 padded = ceil_div(p.seqlen_kv, kTokenPad) * kTokenPad;
    const int blocks = ceil_div(p.seqlen_kv, static_cast<i32>(S.block_kv));
    k = p.k_scale + batch_kv_head * (H::kTokenK ? padded : blocks);
    v = p.v_scale + batch_kv_head * 3 * padded;
  }

  // `to` is the address of the block's KeyScales. `chunk` is the thread's own number, times 16: the
  // offset at which it puts its first 16 bytes into a tile of keys. Unlike the thread's index it is
  // at hand.
  __device__ __forceinline__ void load(u32 to, int block, u32 chunk) const {
    constexpr u32 kBytes = S.block_kv * sizeof(f32);
    if constexpr (H::kTokenK) {
      if (chunk < kBytes) {
        ptx::cp_async_16(to + chunk, reinterpret_cast<const char*>(k + block * S.block_kv) + chunk);
        if constexpr (H::kTokenV) {
          const char* log2_v =
              reinterpret_cast<const char*>(v + (block * 3 + 1) * S.block_kv) + chunk;
          ptx::cp_async_16(to + kBytes + chunk, log2_v);
          ptx::cp_async_16(to + 2 * kBytes + chunk, log2_v + kBytes);
        }
      }
    } else if constexpr (H::kIntegerScores) {
      if (chunk == 0) ptx::cp_async_4(to, k + block);
    }
  }
};
