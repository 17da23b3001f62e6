// Scores under a softcap and no other rule: tanh by multiplications, where they are small.
//
// tanh would be a second operation of the special function unit for each score, and be done before
// the exponentials begin. An odd polynomial of the fifth degree, |error| < 1.8e-5 up to kReach, is
// done among them. Beyond -kReach it goes on falling, which changes nothing if the largest score of
// the row makes what is there negligible. The scores of other blocks, and of those with keys that
// are hidden, become their tanh, in whole numbers if they are such, and the polynomial a straight
// line.
#pragma once
#include "attn/score_rules.cuh"
#include "attn/slopes.cuh"
#include "ptx/math.cuh"
#include "sm90/group_scores.cuh"

template <WgmmaSpec S>
struct CappedScores {
  using Raw = GroupScores<S>;
  using Acc = typename Raw::Acc;
  using Scores = typename Raw::Scores;
  // Scores and what follows from them, in units of the cap.
  static constexpr float kReach = 0.6f;
  static constexpr float kTanhOfReach = 0.537f;
  static constexpr float kFirst = 0.99979336f, kThird = -0.3285475f, kFifth = 0.1049009f;
  // P of 2^-20 is no step of any type.
  static constexpr float kNegligible = 20.0f;
  static constexpr float kUnit = Raw::H::kIntegerScores ? 0x1p-21f : 1.0f;

  static constexpr int kParts = Raw::H::kParts;

  Slopes<kParts> slope;  // from a score to a multiple of the cap
  float shift[2];
  float first;           // of the polynomial, which gives exponents
  float third;
  float fifth;

  __device__ __forceinline__ float of_cap(int part, int half, float x) const {
    return __fmaf_rn(x, slope.at[part][half], shift[half]);
  }

  // The exponent of a score, to which `intercept` is added.
  __device__ __forceinline__ float exponent(int part, int half, float x, float intercept) const {
    const float y = of_cap(part, half, x);
    const float square = y * y;
    const float factor = __fmaf_rn(square, __fmaf_rn(square, fifth, third), first);
    return __fmaf_rn(y, factor, intercept);
  }

  // Of a block: `top` has the largest scores of each of a lane's rows, of all keys or of sections.
  template <bool Masked>
  __device__ __forceinline__ void begin(Scores& s, Acc (&top)[2][kParts],
                                        const Slopes<kParts>& slopes,
                                        const ScoreRules<S>& rules) {
    const float least = kNegligible * rules.inverse_softcap - kTanhOfReach;
    bool is_small = true;
    slope = slopes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      shift[half] = rules.shift[half];
      float most = -kInf;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float y = of_cap(part, half, static_cast<float>(top[half][part]));
        most = part == 0 ? y : fmaxf(most, y);
      }
      is_small = is_small && most >= least && most <= kReach;
    }
    first = kFirst * rules.softcap;
    third = kThird * rules.softcap;
    fifth = kFifth * rules.softcap;
    if (!Masked && __all_sync(0xffffffffu, is_small)) return;
#pragma unroll
    for (int i = 0; i < Raw::H::kScores; ++i) {
      replace<Masked>(s[i], Raw::H::part_of(i / 4), i % 4 / 2);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        replace<Masked>(top[half][part], part, half);
        // Not a number if scales are none.
        slope.at[part][half] = __fmaf_rn(0.0f, slope.at[part][half], kUnit);
      }
      shift[half] *= 0.0f;
    }
    first = rules.softcap;
    third = fifth = 0.0f;
  }

 private:
  template <bool Masked>
  __device__ __forceinline__ void replace(Acc& x, int part, int half) const {
    Acc code;
    const float y = ptx::tanh(of_cap(part, half, static_cast<float>(x)));
    if constexpr (Raw::H::kIntegerScores) {
      constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: its units are 1
      code = __float_as_int(__fmaf_rn(y, 1.0f / kUnit, kWhole)) - __float_as_int(kWhole);
    } else {
      code = y;
    }
    x = Masked && Raw::is_lowest(x) ? x : code;
  }
};

// In its place where there is none.
struct NoCap {};
template <WgmmaSpec S, bool Capped>
struct CapOf {
  using Type = NoCap;
};
template <WgmmaSpec S>
struct CapOf<S, true> {
  using Type = CappedScores<S>;
};
