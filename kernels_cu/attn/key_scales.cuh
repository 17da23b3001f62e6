// What differs from key to key, or from block to block, in shared memory. What keys have is in the
// order of slots (layout.cuh): a lane's four of two adjacent key tiles are one load.
#pragma once
#include "attn/p_range.cuh"
#include "attn/shape.cuh"
#include "layout.cuh"
#include "params.cuh"

template <AttentionSpec S>
struct alignas(16) KeyScales : Deltas<1, S.q_smooth ? S.block_kv : 0> {
  using H = Shape<S>;
  static constexpr int kValues = H::kTokenV ? S.block_kv : H::kSorted ? kPlaceScales : 4;
  // By groups; or of the four lanes of a row, for each 64 keys, or of their sections; or only k[0],
  // of the block.
  float k[max_of(H::kKeyScales, 4)];
  float v[kValues];  // logarithms: V's scale rides in the exponent; or v[0]
  float inverse[kValues];
  u8 order[H::kSorted ? kSortedBlock : 16];  // tokens by their places, if there is an order

  // Where they are, for addresses in the shared window.
  static constexpr u32 kK = S.q_smooth ? 4 * S.block_kv : 0;
  static constexpr u32 kV = kK + sizeof(k);
  static constexpr u32 kInverse = kV + sizeof(v);
  static constexpr u32 kOrder = kInverse + sizeof(inverse);

  __device__ __forceinline__ float block_scale() const { return k[0]; }
  __device__ __forceinline__ float block_scale_v() const { return v[0]; }
  // Of sorted keys: of a section of a lane's.
  __device__ __forceinline__ float section_scale(int section, int lane) const {
    return k[lane % 4 * kSections + section];
  }
  __device__ __forceinline__ float section_log2_v(int section, int lane) const {
    return v[lane % 4 * kSections + section];
  }
  __device__ __forceinline__ float section_inverse_v(int section, int lane) const {
    return inverse[lane % 4 * kSections + section];
  }

  // Of one of a lane's two columns of a key tile.
  __device__ __forceinline__ float token_log2_v(int tile, int e, int lane) const {
    return v[16 * (tile / 2) + 4 * (lane % 4) + 2 * (tile % 2) + e];
  }
  // Of what a lane sees of the key tiles 2 * pair and 2 * pair + 1: two columns of each.
  __device__ __forceinline__ float4 inverse_v(int pair, int lane) const {
    return four(inverse, pair, lane);
  }
  __device__ __forceinline__ float4 group_scales(int group, int pair, int lane) const {
    return four(k + group * S.block_kv, pair, lane);
  }

  // s becomes the exponent: (s * sk) * (softmax_scale * log2 e * sq) + log2 sv + delta. Scales of
  // groups are in s already.
  __device__ __forceinline__ void apply(typename H::Scores& s, const float (&row_scale)[2],
                                        int lane) const {
#pragma unroll
    for (int pair = 0; pair < H::kKeyTiles / 2; ++pair) {
      float4 k4;
      if constexpr (H::kThreadK) {
        k4.x = k4.y = k4.z = k4.w = k[pair / 4 * 4 + lane % 4];
      } else if constexpr (!H::kGroupK) {
        k4 = four(k, pair, lane);
      }
      const float sk[4] = {short_of(k4.x), short_of(k4.y), short_of(k4.z), short_of(k4.w)};
      float added[4] = {};
      if constexpr (H::kTokenV) add(added, four(v, pair, lane));
      if constexpr (S.q_smooth) add(added, four(this->delta[0], pair, lane));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float start = -H::kScoreStart * sk[i];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& x = s[2 * pair + i / 2][2 * half + i % 2];
          if constexpr (H::kThreadK) {
            x = __fmaf_rn(x - H::kScoreStart, row_scale[half] * sk[i], added[i]);
          } else {
            if constexpr (!H::kGroupK) x = __fmaf_rn(x, sk[i], start);
            x = __fmaf_rn(x, row_scale[half], added[i]);
          }
        }
      }
    }
  }

 private:
  // With two bits less, so that it times kMagic is exact, and so is taking kMagic out of a score.
  static __device__ __forceinline__ float short_of(float scale) {
    return H::kThreadK || H::kGroupK ? scale : __uint_as_float(__float_as_uint(scale) & ~3u);
  }
  static __device__ __forceinline__ float4 four(const float* of, int pair, int lane) {
    return *reinterpret_cast<const float4*>(of + 16 * pair + 4 * (lane % 4));
  }
  static __device__ __forceinline__ void add(float (&to)[4], const float4& x) {
    to[0] += x.x;
    to[1] += x.y;
    to[2] += x.z;
    to[3] += x.w;
  }
};
