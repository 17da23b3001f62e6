// Nested codes of a unit's rows; reference/nested.py makes the same.
#pragma once
#include "kv/float_rows.cuh"
#include "kv/unit_image.cuh"

// The nearest bfloat16 number, of a NaN the one that stands for all of them.
__device__ __forceinline__ float nearest_bf16(float x) {
  return __uint_as_float(ptx::pack_bf16x2(0.0f, x) & 0xffff0000u);
}

// The next one that is not below a positive number.
__device__ __forceinline__ float bf16_above(float x) {
  const u32 bits = (__float_as_uint(x) + 0xffffu) & 0xffff0000u;
  return __uint_as_float(x == x ? bits : 0x7fff0000u);
}

// Scale and zero point of the upper halves of `n` codes c, from those of the codes and from sums of
// c, of the halves u, of c c and c u.
__device__ __forceinline__ u32 upper_pair(float scale, float zero, int n, int c, int u, int cc,
                                          int cu) {
  const int variance = n * cc - c * c;
  const int covariance = n * cu - c * u;
  const float ratio = covariance > 0 ? __fdiv_rn(static_cast<float>(variance),
                                                 static_cast<float>(covariance))
                                     : 1.0f;
  const float count = static_cast<float>(n);
  const float of_upper = nearest_bf16(__fmul_rn(scale, ratio));
  const float mean_c = __fdiv_rn(static_cast<float>(c), count);
  const float mean_u = __fdiv_rn(static_cast<float>(u), count);
  const float whole = __fadd_rn(zero, __fmul_rn(scale, mean_c));
  return ptx::pack_bf16x2(of_upper, __fsub_rn(whole, __fmul_rn(of_upper, mean_u)));
}

template <class Rows, int Channels, int Group>
struct NestedCodes {
  using Lanes = typename Rows::Lanes;
  using Section = Sections<Lanes, Group>;
  using Numbers = PerRow<Section::kLanes, Rows::kRows>;
  static constexpr int kRows = Rows::kRows;
  static constexpr int kWords = Lanes::kElements / 4;  // of four codes
  u32 word[kRows][Lanes::kChunks][kWords];

  // Stores the pairs of upper halves and, where there is a place for them, of the whole codes.
  __device__ __forceinline__ NestedCodes(const Rows& rows, const SlotNumbers<Rows>& upper,
                                         const SlotNumbers<Rows>& whole) {
#pragma unroll
    for (int s = 0; s < Section::kCount; ++s) {
      float smallest[kRows], largest[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        smallest[r] = kInf;
        largest[r] = -kInf;
        rows.tile.template visit<Section::kChunks>(
            r, s * Section::kChunks, [&](int, int, float x) {
              smallest[r] = ptx::min_nan(smallest[r], x);
              largest[r] = ptx::max_nan(largest[r], x);
            });
      }
      Numbers zero(smallest, ptx::min_nan);
      Numbers scale(largest, ptx::max_nan);
#pragma unroll
      for (int i = 0; i < Numbers::kOwn; ++i) {
        const float low = zero.own[i];
        const float high = scale.own[i];
        const float middle = __fadd_rn(__fmul_rn(0.5f, low), __fmul_rn(0.5f, high));
        const float z = nearest_bf16(__fadd_rn(middle, 0.0f));
        const float reach = ptx::max_nan(ptx::max_nan(high - z, z - low), kAmaxFloor);
        zero.own[i] = z;
        scale.own[i] = bf16_above(__fdiv_rn(reach, 127.0f));
      }
      float low[kRows], factor[kRows];
      zero.share(low, [](float x) { return x; });
      scale.share(factor, [](float x) { return __fdiv_rn(1.0f, x); });
      float sums[4][kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) make_codes(rows, s, r, low[r], factor[r], sums);
      const auto add = [](float x, float y) { return x + y; };  // whole numbers below 2^24
      const Numbers c(sums[0], add), u(sums[1], add), cc(sums[2], add), cu(sums[3], add);
      Numbers of_upper = zero, of_whole = zero;
      constexpr int kChannels = Group > 0 ? Group : Channels;
#pragma unroll
      for (int i = 0; i < Numbers::kOwn; ++i) {
        of_upper.own[i] = __uint_as_float(upper_pair(
            scale.own[i], zero.own[i], kChannels, static_cast<int>(c.own[i]),
            static_cast<int>(u.own[i]), static_cast<int>(cc.own[i]), static_cast<int>(cu.own[i])));
        of_whole.own[i] = __uint_as_float(ptx::pack_bf16x2(scale.own[i], zero.own[i]));
      }
      const int group = Section::group(s);
      of_upper.for_each([&](int r, float pair) { upper.store(group, r, pair); });
      if (whole.numbers == nullptr) continue;
      of_whole.for_each([&](int r, float pair) { whole.store(group, r, pair); });
    }
  }

 private:
  // Of a section of a row: codes, and the lane's sums of them.
  __device__ __forceinline__ void make_codes(const Rows& rows, int s, int r, float low,
                                             float factor, float (&sums)[4][kRows]) {
    int c = 0, u = 0, cc = 0, cu = 0;
#pragma unroll
    for (int chunk = s * Section::kChunks; chunk < (s + 1) * Section::kChunks; ++chunk) {
      const auto& x = rows.tile.x[r][chunk];
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const auto step = [&](int i) { return (x[4 * w + i] - low) * factor; };
        const u32 codes = ptx::pack_s8x4(step(0), step(1), step(2), step(3));
        const int all = static_cast<int>(codes);
        const int halves = static_cast<int>(codes & 0xf0f0f0f0u);
        c = __dp4a(all, 0x01010101, c);
        u = __dp4a(halves, 0x01010101, u);
        cc = __dp4a(all, all, cc);
        cu = __dp4a(all, halves, cu);
        word[r][chunk][w] = codes;
      }
    }
    sums[0][r] = static_cast<float>(c);
    sums[1][r] = static_cast<float>(u);
    sums[2][r] = static_cast<float>(cc);
    sums[3][r] = static_cast<float>(cu);
  }
};
