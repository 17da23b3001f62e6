// How fast single warps multiply, with operands in registers: every warp multiplies the same tiles
// again and again.
#include "ptx/mma.cuh"
#include "rate.cuh"

template <ProductRateSpec S>
__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  if constexpr (S.type == Type::int8) {
    ptx::mma_s8_s8(d, a, b[0], b[1], d);
  } else if constexpr (S.type == Type::e4m3) {
    ptx::mma_e4m3(d, a, b[0], b[1], d);
  } else {
    ptx::mma_f16(d, a, b[0], b[1], d);
  }
}

template <ProductRateSpec S>
__device__ __forceinline__ void mma_rate(const ProductRateParams& p) {
  constexpr int kRowTiles = S.a_rows / 16;
  constexpr int kColumnTiles = S.b_rows / 8;
  constexpr int kRowWords = S.row_bytes / 4;
  static_assert(S.row_bytes == 32, "one step of k");
  const int g = threadIdx.x % kWarpSize / 4;
  const int t = threadIdx.x % 4;
  const u32* a_words = static_cast<const u32*>(p.a) + g * kRowWords + t;
  const u32* b_words = static_cast<const u32*>(p.b) + g * kRowWords + t;
  u32 a[kRowTiles][4];
  u32 b[kColumnTiles][2];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) a[i][j] = a_words[(16 * i + j % 2 * 8) * kRowWords + j / 2 * 4];
  }
#pragma unroll
  for (int i = 0; i < kColumnTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) b[i][j] = b_words[8 * i * kRowWords + j * 4];
  }
  float d[kRowTiles][kColumnTiles][4] = {};
  for (int round = 0; round < p.rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) multiply<S>(d[i][j], a[i], b[j]);
    }
  }
  Sum<S> sums[kRowTiles * kColumnTiles * 4];
#pragma unroll
  for (int i = 0; i < kRowTiles * kColumnTiles * 4; ++i) {
    const float x = d[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4];
    if constexpr (is_integer(S.type)) {
      sums[i] = __float_as_int(x);  // ptx/mma.cuh keeps integers so
    } else {
      sums[i] = x;
    }
  }
  store_sum<S>(p, sums);
}
