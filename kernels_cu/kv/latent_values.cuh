// O += P V of one block: the warp's rows and channels. V's operands are the transposed matrices of
// the latent codes, in pairs of channels, which are taken apart byte by byte.
#pragma once
#include "kv/latent_softmax.cuh"

template <LatentDecodeSpec S, bool Warpgroups = S.warpgroups>
struct LatentValues {
  using H = LatentShape<S>;
  typename H::Output o = {};

  // By all threads, each with its P in `storage`.
  __device__ __forceinline__ void add(const LatentStorage<S>& storage,
                                      const u8 (&units)[kLatentBlockUnits][kLatentUnitBytes],
                                      const LatentSoftmax<S>& softmax, const LatentWarp<S>& warp) {
    meet_all();
    if (softmax.has_moved()) shrink(softmax);
    u32 p[H::kOwnTiles][H::kValueSteps][4];
#pragma unroll
    for (int i = 0; i < H::kOwnTiles * H::kValueSteps; ++i) {
      const int tile = i / H::kValueSteps, step = i % H::kValueSteps;
      const uint4 x = storage.p.lanes[warp.first_tile + tile][step][warp.lane];
      p[tile][step][0] = x.x;
      p[tile][step][1] = x.y;
      p[tile][step][2] = x.z;
      p[tile][step][3] = x.w;
    }
    const u32 v =
        ptx::smem_address(units) + warp.share * H::kChunks * kLatentChunk + warp.lane * 16;
#pragma unroll
    for (int chunk = 0; chunk < H::kChunks; ++chunk) {
      float sum[H::kOwnTiles][2][4] = {};  // the bits of integers
#pragma unroll
      for (int step = 0; step < H::kValueSteps; ++step) {
        // Two tokens and two channels a word; matrices of 8 tokens each, of 32.
        u32 m[4];
        ptx::ldmatrix_x4_trans(m, v + step / 2 * kLatentUnitBytes + chunk * kLatentChunk +
                                      step % 2 * 32 * 16);
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const u32 bytes = odd ? 0x7531 : 0x6420;
          const u32 b0 = __byte_perm(m[0], m[1], bytes), b1 = __byte_perm(m[2], m[3], bytes);
#pragma unroll
          for (int tile = 0; tile < H::kOwnTiles; ++tile) {
            ptx::mma_u8_s8(sum[tile][odd], p[tile][step], b0, b1, sum[tile][odd]);
          }
        }
      }
      H::for_rows([&](int tile, int half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int odd = i / 2, e = 2 * half + i % 2;
          float& x = o[tile][chunk][odd][e];
          x = __fmaf_rn(static_cast<float>(__float_as_int(sum[tile][odd][e])),
                        softmax.weight[tile][half], x);
        }
      });
    }
  }

  // Nothing is left to add.
  __device__ __forceinline__ void settle(const LatentStorage<S>&, const LatentWarp<S>&) {}

 private:
  // To the reference that the block has moved to.
  __device__ __forceinline__ void shrink(const LatentSoftmax<S>& softmax) {
    H::for_rows([&](int tile, int half) {
#pragma unroll
      for (int i = 0; i < 4 * H::kChunks; ++i) {
        o[tile][i / 4][i / 2 % 2][2 * half + i % 2] *= softmax.shrink[tile][half];
      }
    });
  }
};
