// S = Q K^T of a warpgroup of Hopper: all rows with one unit of a block. A unit's codes and rotary
// channels are operands as they lie, matrices of 8 tokens and 16 bytes.
#pragma once
#include "kv/latent_scores.cuh"
#include "ptx/barriers.cuh"
#include "ptx/wgmma.cuh"

// Of 16 bytes of each of 64 rows or tokens, and of what follows 16 bytes further.
template <LatentDecodeSpec S>
__device__ __forceinline__ u64 latent_operand(const void* of) {
  static_assert(LatentOperand<S>::kChunk == kLatentChunk);
  return ptx::tile_descriptor<0>(ptx::smem_address(of), kLatentChunk, 8 * 16);
}

// Of the lane's tokens 16 i ... in a unit: log2 of the scales and their inverses.
template <LatentDecodeSpec S>
__device__ __forceinline__ void scale_numbers(float (&log2)[LatentShape<S>::kLaneTokens],
                                              float (&inverse)[LatentShape<S>::kLaneTokens], int i,
                                              const LatentStorage<S>& storage,
                                              const LatentTokens<S>& tokens,
                                              const LatentWarp<S>& warp) {
  float4 four[2];
  if constexpr (S.warpgroups) {
    const int slot = 16 * i + warp.lane % 4 * 4;
    four[0] = *reinterpret_cast<const float4*>(storage.log2[warp.share] + slot);
    four[1] = *reinterpret_cast<const float4*>(storage.inverse[warp.share] + slot);
  } else {
    const float4 scale = tokens.scale(i);
    four[0] = {ptx::lg2(scale.x), ptx::lg2(scale.y), ptx::lg2(scale.z), ptx::lg2(scale.w)};
    four[1] = {ptx::rcp(scale.x), ptx::rcp(scale.y), ptx::rcp(scale.z), ptx::rcp(scale.w)};
  }
  log2[4 * i] = four[0].x, log2[4 * i + 1] = four[0].y;
  log2[4 * i + 2] = four[0].z, log2[4 * i + 3] = four[0].w;
  inverse[4 * i] = four[1].x, inverse[4 * i + 1] = four[1].y;
  inverse[4 * i + 2] = four[1].z, inverse[4 * i + 3] = four[1].w;
}

// `meanwhile` is called while the products are under way.
template <LatentDecodeSpec S, class Meanwhile>
  requires(S.warpgroups)
__device__ __forceinline__ void latent_scores(
    typename LatentShape<S>::Scores& s, LatentStorage<S>& storage,
    const u8 (&units)[kLatentBlockUnits][kLatentUnitBytes], const LatentTokens<S>& tokens,
    const LatentWarp<S>& warp, Meanwhile meanwhile) {
  using H = LatentShape<S>;
  static_assert(S.rows == 64 && S.stages == 2 && H::kShares == kLatentBlockUnits);
  const u8* unit = units[warp.share];
  int sum[S.rows / 2];
  float rope[S.rows / 2];
  const u64 q = latent_operand<S>(&storage.q), q_rope = latent_operand<S>(&storage.q_rope);
  const u64 k = latent_operand<S>(unit), k_rope = latent_operand<S>(unit + kRopeAt);
  const auto rope_step = [&](auto accumulate, int step) {
    constexpr bool kAccumulate = decltype(accumulate)::value;
    const u64 a = ptx::advance(q_rope, 2 * step * kLatentChunk);
    const u64 b = ptx::advance(k_rope, 2 * step * kLatentChunk);
    if constexpr (S.rope == Type::fp16) {
      ptx::wgmma_f16<kAccumulate>(rope, a, b);
    } else {
      ptx::wgmma_bf16<kAccumulate>(rope, a, b);
    }
  };
  ptx::hold(sum);
  ptx::hold(rope);
  ptx::wgmma_fence();
  rope_step(Bool<false>{}, 0);
#pragma unroll
  for (int step = 1; step < H::kRopeSteps; ++step) rope_step(Bool<true>{}, step);
  ptx::wgmma_s8_s8<false>(sum, q, k);
#pragma unroll
  for (int step = 1; step < H::kSteps; ++step) {
    ptx::wgmma_s8_s8<true>(sum, ptx::advance(q, 2 * step * kLatentChunk),
                           ptx::advance(k, 2 * step * kLatentChunk));
  }
  ptx::wgmma_commit();
  // One thread a token makes what all rows want of its scale.
  const int slot = threadIdx.x % kWarpgroupSize;
  if (slot < kLatentUnitTokens) {
    const float scale = reinterpret_cast<const f32*>(unit + kLatentScaleAt)[slot];
    storage.log2[warp.share][slot] = ptx::lg2(scale);
    storage.inverse[warp.share][slot] = ptx::rcp(scale);
  }
  ptx::barrier_sync(1 + warp.share, kWarpgroupSize);
  meanwhile();
  ptx::wgmma_wait<0>();
  ptx::hold(sum);
  ptx::hold(rope);
#pragma unroll
  for (int i = 0; i < H::kSixteens; ++i) {
    const float4 four = tokens.scale(i);
    const float scale[4] = {four.x, four.y, four.z, four.w};
    H::for_rows([&](int tile, int half) {
      const float of_row = storage.scale[warp.row(tile, half)];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 2 * i + e / 2, place = 2 * half + e % 2;
        s[tile][column][place] = __fmaf_rn(static_cast<float>(sum[4 * column + place]),
                                           of_row * scale[e], rope[4 * column + place]);
      }
    });
  }
}
