// Scores of sorted keys (layout.cuh): integers, of which a lane's sections have own exponents.
#pragma once
#include "ptx/math.cuh"
#include "sm90/group_scores.cuh"

template <WgmmaSpec S>
struct SortedScores {
  using H = TileShape<S>;
  using Raw = GroupScores<S>;
  using Scores = typename Raw::Scores;

  static __device__ __forceinline__ float k_scale(const TokenScales<S>& keys, int section,
                                                  int lane) {
    return keys.k[lane % 4 * kSections + section];
  }
  static __device__ __forceinline__ float log2_v(const TokenScales<S>& keys, int section,
                                                 int lane) {
    return keys.log2_v[lane % 4 * kSections + section];
  }
  // What exponents have besides scores. Those of rules are biased, and a softcap is one.
  static __device__ __forceinline__ float added(const TokenScales<S>& keys, int section,
                                                int lane) {
    return log2_v(keys, section, lane) + (Raw::kCapped && kBiased<S> ? kLog2Bias : 0.0f);
  }
  static __device__ __forceinline__ float inverse_v(const TokenScales<S>& keys, int section,
                                                    int lane) {
    return keys.inverse_v[lane % 4 * kSections + section];
  }

  // The largest exponent of each of a lane's rows, V's scales included, one being
  // exponent(section, half, score, added). `begin` may change the scores when maxima of sections
  // are known.
  template <bool Masked, class Begin, class Exponent>
  static __device__ __forceinline__ void row_max(float (&m)[2], Scores& s,
                                                 const TokenScales<S>& keys, const Mask<S>& mask,
                                                 int lane, Begin begin,
                                                 const Exponent& exponent) {
    if constexpr (Masked) hide(s, keys, mask, lane);
    typename Raw::Acc top[2][kSections];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int tile = 0; tile < H::kKeyTiles; ++tile) {
        auto& x = top[half][section_of(2 * tile)];
        if (begins_section(tile)) x = Raw::lowest();
        x = Raw::larger(Raw::larger(x, s[4 * tile + 2 * half]), s[4 * tile + 2 * half + 1]);
      }
    }
    begin(top);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      m[half] = -kInf;
#pragma unroll
      for (int section = 0; section < kSections; ++section) {
        const float x = exponent(section, half, Raw::value(top[half][section]),
                                 added(keys, section, lane));
        constexpr bool kMayHide = Raw::template kMayHide<Masked>;
        m[half] = fmaxf(m[half], kMayHide && Raw::is_lowest(top[half][section]) ? -kInf : x);
      }
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const float other[2] = {__shfl_xor_sync(0xffffffffu, m[0], step),
                              __shfl_xor_sync(0xffffffffu, m[1], step)};
      m[0] = fmaxf(m[0], other[0]);
      m[1] = fmaxf(m[1], other[1]);
    }
  }

 private:
  // Unseen keys become the lowest.
  static __device__ __forceinline__ void hide(Scores& s, const TokenScales<S>& keys,
                                              const Mask<S>& mask, int lane) {
    const u8* places = keys.order + lane % 4 * kLanePlaces;
#pragma unroll
    for (int tile = 0; tile < H::kKeyTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = mask.ordered ? places[2 * tile + e] : 8 * tile + lane % 4 * 2 + e;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          auto& x = s[4 * tile + 2 * half + e];
          x = mask.sees_token(token, half) ? x : Raw::lowest();
        }
      }
    }
  }
};

// Exponentials of a lane's two rows, section by section.
template <WgmmaSpec S>
struct SortedSections {
  using Raw = GroupScores<S>;
  using Sorted = SortedScores<S>;
  float intercept[2];  // of the section at hand
  float sum[2];

  // Those of a pair of tiles in a row; their sum without V's scales is added to `row_sum`.
  template <bool Masked, class Exponent>
  __device__ __forceinline__ void exponentiate(float (&y)[4], float& row_sum,
                                               const typename Raw::Scores& s, int pair, int half,
                                               float row_intercept, const TokenScales<S>& keys,
                                               int lane, const Exponent& exponent) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int tile = 2 * pair + e / 2;
      const int section = section_of(2 * tile);
      if (e % 2 == 0 && begins_section(tile)) {
        intercept[half] = row_intercept + Sorted::added(keys, section, lane);
        if constexpr (kColumnStarts<S>) {
          intercept[half] = exponent(section, half, -Raw::kStart, intercept[half]);
        }
      }
      const auto x = s[4 * tile + 2 * half + e % 2];
      const float b = Raw::kRuled ? row_intercept : intercept[half];
      y[e] = ptx::ex2(exponent(section, half, Raw::started(x), b));
      if (Masked && Raw::is_lowest(x)) y[e] = 0.0f;
      sum[half] = e % 2 == 0 && begins_section(tile) ? y[e] : sum[half] + y[e];
      if (e % 2 == 1 && ends_section(tile)) {
        row_sum = __fmaf_rn(sum[half], Sorted::inverse_v(keys, section, lane), row_sum);
      }
    }
  }
};
