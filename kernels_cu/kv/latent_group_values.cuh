// O^T += V^T P^T of one block by warpgroups of Hopper. Products of 8 bits want both operands by
// tokens, and only the left one may be in registers: so V is that, taken apart there as by
// mma.sync, and P, which rows' warps have left in shared memory, is the right one.
#pragma once
#include "kv/latent_softmax.cuh"

// Calls f(i, x) with what `of_rows` has for the lane's rows 8 i + 2 t and 8 i + 2 t + 1.
template <LatentDecodeSpec S, class F>
__device__ __forceinline__ void for_row_pairs(const f32 (&of_rows)[S.rows], int lane, F f) {
#pragma unroll
  for (int i = 0; i < S.rows / 8; ++i) {
    f(i, *reinterpret_cast<const float2*>(of_rows + 8 * i + lane % 4 * 2));
  }
}

// To the reference that the block has moved to.
template <LatentDecodeSpec S>
  requires(S.warpgroups)
__device__ __forceinline__ void shrink_output(typename LatentShape<S>::Output& o,
                                              const LatentStorage<S>& storage,
                                              const LatentSoftmax<S>&, const LatentWarp<S>& warp) {
  for_row_pairs<S>(storage.shrink, warp.lane, [&](int i, const float2& shrink) {
#pragma unroll
    for (auto& tile : o) {
      tile[4 * i] *= shrink.x;
      tile[4 * i + 1] *= shrink.y;
      tile[4 * i + 2] *= shrink.x;
      tile[4 * i + 3] *= shrink.y;
    }
  });
}

// Left operands of all tokens of a block, of the warp's chunk of a tile of V^T: even channels are
// its upper rows, odd ones the lower.
template <LatentDecodeSpec S>
__device__ __forceinline__ void load_values(u32 (&a)[4 * LatentShape<S>::kValueSteps], u32 chunk) {
#pragma unroll
  for (int step = 0; step < LatentShape<S>::kValueSteps; ++step) {
    // Two tokens and two channels a word; matrices of 8 tokens each, of 32.
    u32 m[4];
    ptx::ldmatrix_x4_trans(m, chunk + step / 2 * kLatentUnitBytes + step % 2 * 32 * 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[4 * step + 2 * half] = __byte_perm(m[2 * half], m[2 * half + 1], 0x6420);
      a[4 * step + 2 * half + 1] = __byte_perm(m[2 * half], m[2 * half + 1], 0x7531);
    }
  }
}

template <LatentDecodeSpec S>
  requires(S.warpgroups)
__device__ __forceinline__ void add_latent_values(
    typename LatentShape<S>::Output& o, const LatentStorage<S>& storage,
    const u8 (&units)[kLatentBlockUnits][kLatentUnitBytes], const LatentSoftmax<S>&,
    const LatentWarp<S>& warp) {
  using H = LatentShape<S>;
  constexpr int kTiles = H::kChunks / 4;
  const u64 p = latent_operand<S>(&storage.p);
  const u32 v = ptx::smem_address(units) +
                (warp.share * H::kChunks + warp.first_tile) * kLatentChunk + warp.lane * 16;
  u32 a[2][4 * H::kValueSteps];  // of this tile and the next one
  load_values<S>(a[0], v);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    int sum[S.rows / 2];
    ptx::hold(sum);
    ptx::hold(a[tile % 2]);
    ptx::wgmma_fence();
    ptx::wgmma_s8_u8<false>(sum, a[tile % 2], p);
#pragma unroll
    for (int step = 1; step < H::kValueSteps; ++step) {
      ptx::wgmma_s8_u8<true>(sum, a[tile % 2] + 4 * step, ptx::advance(p, 2 * step * kLatentChunk));
    }
    ptx::wgmma_commit();
    if (tile + 1 < kTiles) load_values<S>(a[(tile + 1) % 2], v + 4 * (tile + 1) * kLatentChunk);
    ptx::wgmma_wait<0>();
    ptx::hold(sum);
    for_row_pairs<S>(storage.weight, warp.lane, [&](int i, const float2& weight) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = o[tile][4 * i + e];
        x = __fmaf_rn(static_cast<float>(sum[4 * i + e]), e % 2 ? weight.y : weight.x, x);
      }
    });
  }
}
