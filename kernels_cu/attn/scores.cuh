// S = Q K^T for one block of keys.
#pragma once
#include "attn/key_scales.cuh"
#include "attn/sequence_params.cuh"
#include "attn/shape.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

// The value that an accumulator starts from; see kMagic.
template <Type T>
__device__ constexpr float kAccumulatorStart = is_integer(T) ? kMagic : 0.0f;

// D = A B + C.
template <Type T, bool UnsignedA = false>
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1,
                                    const float (&c)[4]) {
  if constexpr (T == Type::fp16) {
    ptx::mma_f16(d, a, b0, b1, c);
  } else if constexpr (T == Type::bf16) {
    ptx::mma_bf16(d, a, b0, b1, c);
  } else if constexpr (T == Type::e4m3) {
    ptx::mma_e4m3(d, a, b0, b1, c);
  } else if constexpr (T == Type::int4) {
    ptx::mma_s4_s4(d, a, b0, b1, c);
  } else if constexpr (UnsignedA) {
    ptx::mma_u8_s8(d, a, b0, b1, c);
  } else {
    ptx::mma_s8_s8(d, a, b0, b1, c);
  }
}

// One step of k of a sum that begins at step 0.
template <Type T, bool UnsignedA = false, bool Wide = false>
__device__ __forceinline__ void mma_step(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1,
                                         int step) {
  if (step == 0) {
    constexpr float kStart = Wide ? 0.0f : kAccumulatorStart<T>;
    const float start[4] = {kStart, kStart, kStart, kStart};
    mma<T, UnsignedA>(d, a, b0, b1, start);
  } else {
    mma<T, UnsignedA>(d, a, b0, b1, d);
  }
}

// Q's operands of one tile of 16 rows, held in registers for the whole loop or read for each block.
template <AttentionSpec S>
struct Queries {
  using H = Shape<S>;
  u32 smem;
  u32 held[H::kScoreSteps][4];  // unused, so no registers, unless q_in_registers
  float scale[H::kGroups][2];   // of a lane's two rows, if each group of channels has its own

  __device__ __forceinline__ void get(u32 (&a)[4], int step) const {
    if constexpr (S.q_in_registers) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held[step][i];
    } else {
      ptx::ldmatrix_x4(a, H::QTile::advance(smem, step * 32));
    }
  }

  // `row` is the first of the lane's two.
  __device__ __forceinline__ void load_scales(const AttentionParams& p, i64 batch_head, int row) {
    if constexpr (H::kGroupK) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const i64 at = batch_head * row_pitch<S>(p) + min_of(row + 8 * half, p.seqlen_q - 1);
#pragma unroll
        for (int group = 0; group < H::kGroups; ++group) {
          scale[group][half] = __ldg(p.q_scale + at * H::kGroups + group);
        }
      }
    }
  }

  __device__ __forceinline__ void hold() {
    if constexpr (S.q_in_registers) {
#pragma unroll
      for (int step = 0; step < H::kScoreSteps; ++step) {
        ptx::ldmatrix_x4(held[step], H::QTile::advance(smem, step * 32));
      }
    }
  }
};

// The sum over groups of channels, each times its scales.
template <AttentionSpec S>
__device__ __forceinline__ void scores_by_groups(typename Shape<S>::Scores& s,
                                                 const Queries<S>& queries, u32 k,
                                                 const KeyScales<S>& keys, int lane) {
  using H = Shape<S>;
  constexpr int kSteps = H::kScoreSteps / H::kGroups;
  static_assert(kSteps * H::kGroups == H::kScoreSteps);
#pragma unroll
  for (int pair = 0; pair < H::kKeyTiles / 2; ++pair) {
#pragma unroll
    for (int group = 0; group < H::kGroups; ++group) {
      float sum[2][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        u32 a[4], b[4];
        queries.get(a, group * kSteps + step);
        ptx::ldmatrix_x4(b, H::KTile::advance(k, (group * kSteps + step) * 32) +
                                pair * 16 * H::KTile::row_bytes);
        mma_step<S.qk>(sum[0], a, b[0], b[1], step);
        mma_step<S.qk>(sum[1], a, b[2], b[3], step);
      }
      const float4 k4 = keys.group_scales(group, pair, lane);
      const float sk[4] = {k4.x, k4.y, k4.z, k4.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float scale = sk[i / 4 * 2 + i % 2] * queries.scale[group][i % 4 / 2];
        float& x = s[2 * pair + i / 4][i % 4];
        x = __fmaf_rn(sum[i / 4][i % 4] - kMagic, scale, group == 0 ? 0.0f : x);
      }
    }
  }
}

// `k` is the lane's address in the tile of keys.
template <AttentionSpec S>
__device__ __forceinline__ void scores(typename Shape<S>::Scores& s, const Queries<S>& queries,
                                       u32 k, const KeyScales<S>& keys, int lane) {
  using H = Shape<S>;
  if constexpr (H::kGroupK) {
    scores_by_groups<S>(s, queries, k, keys, lane);
    return;
  }
#pragma unroll
  for (int step = 0; step < H::kScoreSteps; ++step) {
    u32 a[4];
    queries.get(a, step);
#pragma unroll
    for (int pair = 0; pair < H::kKeyTiles / 2; ++pair) {
      u32 b[4];
      ptx::ldmatrix_x4(b, H::KTile::advance(k, step * 32) + pair * 16 * H::KTile::row_bytes);
      mma_step<S.qk, false, H::kWideScores>(s[2 * pair], a, b[0], b[1], step);
      mma_step<S.qk, false, H::kWideScores>(s[2 * pair + 1], a, b[2], b[3], step);
    }
  }
  if constexpr (H::kWideScores) {
#pragma unroll
    for (auto& tile : s) {
      // Exact: below 2^24.
#pragma unroll
      for (float& x : tile) x = static_cast<float>(__float_as_int(x));
    }
  }
}
