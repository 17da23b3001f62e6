// Scales that differ from key to key, or from block to block, in shared memory. Those of keys are
// in the order of slots (layout.cuh): a lane's four of two adjacent key tiles are one load.
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

  // Of what a lane sees of the key tiles 2 * pair and 2 * pair + 1: two columns of each.
  __device__ __forceinline__ float4 inverse_v(int pair, int lane) const {
    return four(inverse, pair, lane);
  }

  // s becomes the exponent: (s * sk) * (softmax_scale * log2 e * sq) + log2 sv.
  __device__ __forceinline__ void apply(typename H::Scores& s, const float (&row_scale)[2],
                                        int lane) const {
#pragma unroll
    for (int pair = 0; pair < H::kKeyTiles / 2; ++pair) {
      const float4 k4 = four(k, pair, lane);
      const float4 v4 = H::kTokenV ? four(log2_v, pair, lane) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      const float sk[4] = {k4.x, k4.y, k4.z, k4.w};
      const float log2_sv[4] = {v4.x, v4.y, v4.z, v4.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float start = -kMagic * sk[i];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& x = s[2 * pair + i / 2][2 * half + i % 2];
          x = __fmaf_rn(x, sk[i], start);
          x = __fmaf_rn(x, row_scale[half], log2_sv[i]);
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ float4 four(const float* of, int pair, int lane) {
    return *reinterpret_cast<const float4*>(of + 16 * pair + 4 * (lane % 4));
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
