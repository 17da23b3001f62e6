// The scores of 16 rows as they come from the tensor cores, and their maxima.
#pragma once
#include "attn/mask.cuh"
#include "attn/shape.cuh"
#include "ptx/math.cuh"

template <AttentionSpec S>
struct RawScores {
  // Accumulators that started at kMagic are positive floats: their bits compare as integers, for
  // which there is a three-way maximum.
  static constexpr bool kRuled = S.rules.change_scores();
  static constexpr bool kExponents = Shape<S>::kTokenK || kRuled;  // scales or rules make them so
  static constexpr bool kUnitSlope = kExponents && !kCapUnits<S> && !kSlopeUnits<S>;
  static constexpr bool kAsIntegers =
      Shape<S>::kIntegerScores && !kExponents && !Shape<S>::kWideScores;
  // Below every score: what stands for a key that is not seen.
  static constexpr int kLowestBits = kAsIntegers ? 0x80000000 : 0xff800000;

  static __device__ __forceinline__ float larger(float a, float b) {
    if constexpr (kAsIntegers) {
      return __int_as_float(max(__float_as_int(a), __float_as_int(b)));
    } else {
      return fmaxf(a, b);
    }
  }

  static __device__ __forceinline__ float lowest() { return __int_as_float(kLowestBits); }

  static __device__ __forceinline__ bool is_lowest(float x) {
    return __float_as_int(x) == kLowestBits;
  }

  // The maximum of each of a lane's two rows; unseen keys become the lowest. `of_lane` is added to
  // what a lane has of maxima that are multiples of ALiBi's slope.
  template <bool Masked>
  static __device__ __forceinline__ void row_max(typename Shape<S>::Scores& s, float (&top)[2],
                                                 const Mask<S>& mask, float of_lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float m[2] = {lowest(), lowest()};  // two chains, for latency
#pragma unroll
      for (int key_tile = 0; key_tile < Shape<S>::kKeyTiles; ++key_tile) {
        float& x0 = s[key_tile][2 * half];
        float& x1 = s[key_tile][2 * half + 1];
        if constexpr (Masked) {
          x0 = mask.sees(key_tile, 2 * half) ? x0 : lowest();
          x1 = mask.sees(key_tile, 2 * half + 1) ? x1 : lowest();
        }
        m[key_tile % 2] = larger(larger(m[key_tile % 2], x0), x1);
      }
      float x = larger(m[0], m[1]);
      if constexpr (kSlopeUnits<S> && !Mask<S>::kSorted) x += of_lane;
      x = larger(x, __shfl_xor_sync(0xffffffffu, x, 1));
      top[half] = larger(x, __shfl_xor_sync(0xffffffffu, x, 2));
    }
  }

  // Of a pair of tiles in a row: exponent = s * slope + intercept.
  template <bool Masked>
  static __device__ __forceinline__ void exponentials(float (&y)[4],
                                                      const typename Shape<S>::Scores& s, int pair,
                                                      int half, float slope, float intercept) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = s[2 * pair + i / 2][2 * half + i % 2];
      y[i] = ptx::ex2(kUnitSlope ? x + intercept : __fmaf_rn(x, slope, intercept));
      if (Masked && is_lowest(x)) y[i] = 0.0f;
    }
  }
};
