// The scores of 16 rows as they come from the tensor cores, and their maxima.
#pragma once
#include "attn/mask.cuh"
#include "ptx/math.cuh"
#include "sm90/score_values.cuh"

template <WgmmaSpec S>
struct GroupScores : ScoreValues<S> {
  using Values = ScoreValues<S>;
  using typename Values::H, typename Values::Acc, typename Values::Scores;
  using Values::is_lowest, Values::like, Values::lowest;
  using Values::kCompareBits, Values::larger, Values::started, Values::value;

  // A lane's four keys of two adjacent MMA tiles.
  static __device__ __forceinline__ void load_four(float (&x)[4], const float* of, int pair,
                                                   int lane) {
    const float4 four = *reinterpret_cast<const float4*>(of + 16 * pair + 4 * (lane % 4));
    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
  }

  // Of a pair of tiles in a row, whose exponents are exponent(s + kStart).
  template <bool Masked, class Exponent>
  static __device__ __forceinline__ void exponentials(float (&y)[4], const Scores& s, int pair,
                                                      int half, Exponent exponent) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Acc x = s[8 * pair + 4 * (e / 2) + 2 * half + e % 2];
      y[e] = ptx::ex2(exponent(started(x)));
      if (Masked && is_lowest(x)) y[e] = 0.0f;
    }
  }

  // The maximum of each of a lane's two rows; unseen keys become the lowest. `of_lane` is added to
  // maxima that are multiples of ALiBi's slope.
  template <bool Masked, bool Exact = false>
  static __device__ __forceinline__ void row_max(Scores& s, Acc (&top)[2], const Mask<S>& mask,
                                                 float of_lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Acc m[2] = {lowest(), lowest()};
#pragma unroll
      for (int tile = 0; tile < H::kKeyTiles; ++tile) {
        Acc& x0 = s[4 * tile + 2 * half];
        Acc& x1 = s[4 * tile + 2 * half + 1];
        if constexpr (Masked) {
          x0 = mask.sees(tile, 2 * half) ? x0 : lowest();
          x1 = mask.sees(tile, 2 * half + 1) ? x1 : lowest();
        }
        m[tile % 2] = larger<Exact>(larger<Exact>(m[tile % 2], x0), x1);
      }
      top[half] = larger<Exact>(m[0], m[1]);
      if constexpr (kSlopeUnits<S> && !H::kSorted) {
        top[half] = like(top[half], value(top[half]) + of_lane);
      }
    }
  }

  // Of the four lanes that share a row.
  template <bool Masked>
  static __device__ __forceinline__ void across_row(Scores& s, Acc (&top)[2],
                                                    const Mask<S>& mask, float of_lane) {
    // A lane whose scores are all negative may not have their maximum; what is added hides that.
    const bool added = kSlopeUnits<S> && !H::kSorted;
    bool doubt = added && (value(top[0]) < of_lane || value(top[1]) < of_lane);
    across_lanes(top);
    if constexpr (kCompareBits) {
      doubt = doubt || top[0] < 0 || top[1] < 0;
      if (__any_sync(0xffffffffu, doubt)) {
        row_max<Masked, true>(s, top, mask, of_lane);
        across_lanes<true>(top);
      }
    }
  }

  template <bool Exact = false>
  static __device__ __forceinline__ void across_lanes(Acc (&top)[2]) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const Acc other[2] = {__shfl_xor_sync(0xffffffffu, top[0], step),
                            __shfl_xor_sync(0xffffffffu, top[1], step)};
      top[0] = larger<Exact>(top[0], other[0]);
      top[1] = larger<Exact>(top[1], other[1]);
    }
  }

  // From scores to exponents: exponent(half, score).
  template <bool Masked, class Exponent>
  static __device__ __forceinline__ void in_log2(float (&m)[2], const Acc (&top)[2],
                                                 Exponent exponent) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      m[half] = exponent(half, value(top[half]));
      if (Masked && is_lowest(top[half])) m[half] = -kInf;
    }
  }
};
