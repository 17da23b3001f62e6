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

// Scores are exponents already; one thread has made inverses for all.
template <LatentDecodeSpec S>
struct LatentScales<S, true> {
  const f32* inverses;

  __device__ __forceinline__ LatentScales(const LatentStorage<S>& storage, const LatentTokens<S>&,
                                          const LatentWarp<S>& warp)
      : inverses(storage.inverse[warp.share] + warp.lane % 4 * 4) {}

  __device__ __forceinline__ float exponent(float score, float, int) const { return score; }
  __device__ __forceinline__ float exponent(float score, float, int, float start) const {
    return score + start;
  }
  __device__ __forceinline__ float inverse(int i) const {
    const float4 four = *reinterpret_cast<const float4*>(inverses + i / 4 * 16);
    return i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
  }
};

// Exponents of 2 that P is made of, the scale of a token, K's and V's, among them. `factor` makes
// them of logits, Q's scales in `storage` have it. `settle` is called while products are under way.
template <LatentDecodeSpec S, class Settle>
  requires(S.warpgroups)
__device__ __forceinline__ void latent_scores(
    typename LatentShape<S>::Scores& s, LatentStorage<S>& storage,
    const u8 (&units)[kLatentBlockUnits][kLatentUnitBytes], const LatentTokens<S>& tokens,
    const LatentWarp<S>& warp, float factor, Settle settle) {
  using H = LatentShape<S>;
  static_assert(S.rows == 64 && S.stages == 2 && H::kShares == kLatentBlockUnits);
  const u8* unit = units[warp.share];
  int sum[S.rows / 2];
  const u64 q = latent_operand<S>(&storage.q), q_rope = latent_operand<S>(&storage.q_rope);
  const u64 k = latent_operand<S>(unit), k_rope = latent_operand<S>(unit + kRopeAt);
  const auto rope_step = [&](auto& rope, auto accumulate, int step) {
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
  ptx::wgmma_fence();
  ptx::wgmma_s8_s8<false>(sum, q, k);
#pragma unroll
  for (int step = 1; step < H::kSteps; ++step) {
    ptx::wgmma_s8_s8<true>(sum, ptx::advance(q, 2 * step * kLatentChunk),
                           ptx::advance(k, 2 * step * kLatentChunk));
  }
  ptx::wgmma_commit();
  settle();  // and have its registers
  float rope[S.rows / 2];
  ptx::hold(rope);
  ptx::wgmma_fence();
  rope_step(rope, Bool<false>{}, 0);
#pragma unroll
  for (int step = 1; step < H::kRopeSteps; ++step) rope_step(rope, Bool<true>{}, step);
  ptx::wgmma_commit();
  // One thread a token makes what all rows want of its scale.
  const int slot = threadIdx.x % kWarpgroupSize;
  if (slot < kLatentUnitTokens) {
    const float scale = reinterpret_cast<const f32*>(unit + kLatentScaleAt)[slot];
    storage.log2[warp.share][slot] = ptx::lg2(scale);
    storage.inverse[warp.share][slot] = ptx::rcp(scale);
  }
  ptx::barrier_sync(1 + warp.share, kWarpgroupSize);
  ptx::wgmma_wait<0>();
  ptx::hold(sum);
  ptx::hold(rope);
#pragma unroll
  for (int i = 0; i < H::kSixteens; ++i) {
    const float4 of_k = tokens.scale(i);
    const float4 of_log2 =
        *reinterpret_cast<const float4*>(storage.log2[warp.share] + 16 * i + warp.lane % 4 * 4);
    const float scale[4] = {of_k.x, of_k.y, of_k.z, of_k.w};
    const float log2[4] = {of_log2.x, of_log2.y, of_log2.z, of_log2.w};
    H::for_rows([&](int tile, int half) {
      const float of_row = storage.scale[warp.row(tile, half)];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 2 * i + e / 2, place = 2 * half + e % 2;
        const float of_rope = __fmaf_rn(rope[4 * column + place], factor, log2[e]);
        s[tile][column][place] = __fmaf_rn(static_cast<float>(sum[4 * column + place]),
                                           of_row * scale[e], of_rope);
      }
    });
  }
}
