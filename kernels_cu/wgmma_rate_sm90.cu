// How fast warpgroups of Hopper multiply, with operands in shared memory: every warpgroup
// multiplies the same tiles again and again.
#include "ptx/barriers.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/wgmma.cuh"
#include "rate.cuh"

// Copies rows of 128 bytes into shared memory, where chunks of 16 bytes are permuted within a row
// as wgmma reads them.
template <ProductRateSpec S, int Rows>
__device__ __forceinline__ void load_rows(u8* smem, const void* gmem) {
  constexpr int kChunks = S.row_bytes / 16;
  for (int i = threadIdx.x; i < Rows * kChunks; i += S.num_threads) {
    const int row = i / kChunks;
    reinterpret_cast<uint4*>(smem)[row * kChunks + (i % kChunks ^ row % kChunks)] =
        static_cast<const uint4*>(gmem)[i];
  }
}

template <ProductRateSpec S>
__device__ __forceinline__ void wgmma_rate(const ProductRateParams& p) {
  static_assert(S.a_rows == 64 && S.row_bytes == 128);
  static_assert(S.smem_bytes == (S.a_rows + S.b_rows) * S.row_bytes,
                "cuattn/specs/rates.py disagrees");
  extern __shared__ __align__(1024) u8 smem[];
  u8* b_tile = smem + S.a_rows * S.row_bytes;
  load_rows<S, S.a_rows>(smem, p.a);
  load_rows<S, S.b_rows>(b_tile, p.b);
  ptx::fence_for_async_reads();
  __syncthreads();
  const u64 a = ptx::tile_descriptor<128>(ptx::smem_address(smem), 16, 1024);
  const u64 b = ptx::tile_descriptor<128>(ptx::smem_address(b_tile), 16, 1024);
  Sum<S> d[S.b_rows / 2] = {};
  for (int round = 0; round < p.rounds; ++round) {
    ptx::hold(d);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < S.row_bytes / 32; ++step) {
      const u64 a_step = ptx::advance(a, 32 * step);
      const u64 b_step = ptx::advance(b, 32 * step);
      if constexpr (S.type == Type::int8) {
        ptx::wgmma_s8_s8<true>(d, a_step, b_step);
      } else if constexpr (S.type == Type::e4m3) {
        ptx::wgmma_e4m3<true>(d, a_step, b_step);
      } else {
        ptx::wgmma_f16<true>(d, a_step, b_step);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
  }
  ptx::wgmma_wait<0>();
  ptx::hold(d);
  store_sum<S>(p, d);
}
