// O^T += V^T P^T of one block by warpgroups of Hopper. Products of 8 bits want both operands by
// tokens, and only the left one may be in registers: so V is that, taken apart there as for
// mma.sync, and P, which is in shared memory, the right one.
#pragma once
#include "kv/latent_values.cuh"
#include "ptx/shared.cuh"

template <LatentDecodeSpec S>
struct LatentValues<S, true> {
  using H = LatentShape<S>;
  using Sums = int[S.rows / 2];
  using Operands = u32[4 * H::kValueSteps];
  static constexpr int kTiles = H::kChunks / 4;

  typename H::Output o = {};
  float last[S.rows / 2] = {};  // products of the last tile, which are not in O yet

  // By all threads, each with its P in `storage`, where its weights stay until `settle`.
  __device__ __forceinline__ void add(const LatentStorage<S>& storage,
                                      const u8 (&units)[kLatentBlockUnits][kLatentUnitBytes],
                                      const LatentSoftmax<S>&, const LatentWarp<S>& warp) {
    const u64 p = latent_operand<S>(&storage.p);
    const u32 v = ptx::smem_address(units) +
                  (warp.share * H::kChunks + warp.first_tile) * kLatentChunk + warp.lane * 16;
    Operands a[2];  // of tiles in turn
    Sums sum[2];
    load(a[0], v);
    meet_all();
    start(sum[0], a[0], p);
    shrink(storage, warp.lane);
    load(a[1], v + 4 * kLatentChunk);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      ptx::wgmma_wait<0>();
      ptx::hold(sum[tile % 2]);
      if (tile + 1 == kTiles) break;
      start(sum[(tile + 1) % 2], a[(tile + 1) % 2], p);
      flush(o[tile], sum[tile % 2], storage, warp.lane);
      if (tile + 2 < kTiles) load(a[tile % 2], v + 4 * (tile + 2) * kLatentChunk);
    }
#pragma unroll
    for (int i = 0; i < S.rows / 2; ++i) last[i] = static_cast<float>(sum[(kTiles - 1) % 2][i]);
  }

  // Adds what is left: best while other products are under way.
  __device__ __forceinline__ void settle(const LatentStorage<S>& storage,
                                         const LatentWarp<S>& warp) {
    flush(o[kTiles - 1], last, storage, warp.lane);
  }

 private:
  // Left operands of all tokens of a block, of the warp's chunk of a tile of V^T: even channels
  // are its upper rows, odd ones the lower.
  static __device__ __forceinline__ void load(Operands& a, u32 chunk) {
#pragma unroll
    for (int step = 0; step < H::kValueSteps; ++step) {
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

  static __device__ __forceinline__ void start(Sums& sum, Operands& a, u64 p) {
    ptx::hold(sum);
    ptx::hold(a);
    ptx::wgmma_fence();
    ptx::wgmma_s8_u8<false>(sum, a, p);
#pragma unroll
    for (int step = 1; step < H::kValueSteps; ++step) {
      ptx::wgmma_s8_u8<true>(sum, a + 4 * step, ptx::advance(p, 2 * step * kLatentChunk));
    }
    ptx::wgmma_commit();
  }

  // Calls f(i, x) with what `of_rows` has for the lane's rows 8 i + 2 t and 8 i + 2 t + 1. Read
  // now: what hangs on it is not to come before products that have been started.
  template <class F>
  static __device__ __forceinline__ void for_row_pairs(const f32 (&of_rows)[S.rows], int lane,
                                                       F f) {
#pragma unroll
    for (int i = 0; i < S.rows / 8; ++i) {
      f(i, ptx::fetch_two(ptx::smem_address(of_rows) + 32 * i + lane % 4 * 8));
    }
  }

  // Adds a tile's products to O.
  template <class Number>
  static __device__ __forceinline__ void flush(float (&o)[S.rows / 2],
                                               const Number (&sum)[S.rows / 2],
                                               const LatentStorage<S>& storage, int lane) {
    for_row_pairs(storage.weight, lane, [&](int i, const float2& weight) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = o[4 * i + e];
        x = __fmaf_rn(static_cast<float>(sum[4 * i + e]), e % 2 ? weight.y : weight.x, x);
      }
    });
  }

  // To the reference that the block has moved to, if it has.
  __device__ __forceinline__ void shrink(const LatentStorage<S>& storage, int lane) {
    bool moved = false;
#pragma unroll
    for (int row = 0; row < S.rows; row += kWarpSize) moved |= storage.shrink[row + lane] != 1.0f;
    if (!__any_sync(0xffffffffu, moved)) return;
    for_row_pairs(storage.shrink, lane, [&](int i, const float2& shrink) {
#pragma unroll
      for (auto& tile : o) {
        tile[4 * i] *= shrink.x;
        tile[4 * i + 1] *= shrink.y;
        tile[4 * i + 2] *= shrink.x;
        tile[4 * i + 3] *= shrink.y;
      }
    });
  }
};
