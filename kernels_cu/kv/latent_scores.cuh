// S = Q K^T of a warp's rows with its tokens of one block.
#pragma once
#include "kv/latent_storage.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

// Where a warp's tokens are in a block's units: codes, rotary channels and scales.
template <LatentDecodeSpec S>
struct LatentTokens {
  using H = LatentShape<S>;
  u32 codes;            // the lane's row of the first matrices
  const u8* scales;     // of the lane's first four tokens

  __device__ __forceinline__ LatentTokens(const u8 (&units)[kLatentBlockUnits][kLatentUnitBytes],
                                          const LatentWarp<S>& warp) {
    const int first = warp.share * H::kTokens;
    const u8* unit = units[first / kLatentUnitTokens];
    const int place = first % kLatentUnitTokens;
    const int lane = warp.lane;
    // Both halves of k of eight tokens come before the next eight: operands are pairs of registers.
    codes = ptx::smem_address(unit) + lane / 8 % 2 * kLatentChunk +
            (place + lane / 16 * 8 + lane % 8) * 16;
    scales = unit + kLatentScaleAt + 4 * place + lane % 4 * 16;
  }

  __device__ __forceinline__ float4 scale(int sixteen) const {
    return *reinterpret_cast<const float4*>(scales + 64 * sixteen);
  }
};

// What exponents and row sums want of the scales of the lane's tokens.
template <LatentDecodeSpec S, bool Warpgroups = S.warpgroups>
struct LatentScales {
  static constexpr int kCount = LatentShape<S>::kLaneTokens;
  float log2[kCount], inverses[kCount];

  __device__ __forceinline__ LatentScales(const LatentStorage<S>&, const LatentTokens<S>& tokens,
                                          const LatentWarp<S>&) {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 four = tokens.scale(i);
      const float scale[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        log2[4 * i + e] = ptx::lg2(scale[e]);
        inverses[4 * i + e] = ptx::rcp(scale[e]);
      }
    }
  }

  // Of a score of token i, of which `factor` makes an exponent.
  __device__ __forceinline__ float exponent(float score, float factor, int i) const {
    return __fmaf_rn(score, factor, log2[i]);
  }
  // The same and `start`.
  __device__ __forceinline__ float exponent(float score, float factor, int i, float start) const {
    return __fmaf_rn(score, factor, log2[i] + start);
  }
  __device__ __forceinline__ float inverse(int i) const { return inverses[i]; }
};

// Products of 16 bytes of every token, twice, with 32 bytes of every row.
template <LatentDecodeSpec S, class Product>
__device__ __forceinline__ void latent_step(typename LatentShape<S>::Scores& s, const uint4* q,
                                            int stride, u32 k, Product product) {
  using H = LatentShape<S>;
  u32 b[H::kSixteens][4];
#pragma unroll
  for (int i = 0; i < H::kSixteens; ++i) ptx::ldmatrix_x4(b[i], k + 256 * i);
#pragma unroll
  for (int tile = 0; tile < H::kOwnTiles; ++tile) {
    const uint4 x = q[tile * stride];
    const u32 a[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 2 * H::kSixteens; ++i) {
      product(s[tile][i], a, b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]);
    }
  }
}

template <LatentDecodeSpec S>
  requires(!S.warpgroups)
__device__ __forceinline__ void latent_scores(typename LatentShape<S>::Scores& s,
                                              const LatentStorage<S>& storage,
                                              const LatentTokens<S>& tokens,
                                              const LatentWarp<S>& warp) {
  using H = LatentShape<S>;
#pragma unroll 4
  for (int step = 0; step < H::kSteps; ++step) {
    latent_step<S>(s, &storage.q.lanes[warp.first_tile][step][warp.lane], H::kSteps * kWarpSize,
                   tokens.codes + 2 * step * kLatentChunk,
                   [](float(&c)[4], const u32(&a)[4], u32 b0, u32 b1) {
                     ptx::mma_s8_s8(c, a, b0, b1, c);
                   });
  }
  // The integers become floats, to which the rotary channels' products are added.
#pragma unroll
  for (int i = 0; i < H::kSixteens; ++i) {
    const float4 four = tokens.scale(i);
    const float k[4] = {four.x, four.y, four.z, four.w};
    H::for_rows([&](int tile, int half) {
      const float q = storage.scale[warp.row(tile, half)];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = s[tile][2 * i + e / 2][2 * half + e % 2];
        x = static_cast<float>(__float_as_int(x)) * (q * k[e]);
      }
    });
  }
#pragma unroll
  for (int step = 0; step < H::kRopeSteps; ++step) {
    latent_step<S>(s, &storage.q_rope.lanes[warp.first_tile][step][warp.lane],
                   H::kRopeSteps * kWarpSize, tokens.codes + kRopeAt + 2 * step * kLatentChunk,
                   [](float(&c)[4], const u32(&a)[4], u32 b0, u32 b1) {
                     if constexpr (S.rope == Type::fp16) {
                       ptx::mma_f16(c, a, b0, b1, c);
                     } else {
                       ptx::mma_bf16(c, a, b0, b1, c);
                     }
                   });
  }
}
