// What is in the place of scores: integers as they come from the tensor cores, the same as floats
// that begin at kMagic, or exponents.
#pragma once
#include "sm90/tile_storage.cuh"

template <WgmmaSpec S>
struct ScoreValues {
  using H = TileShape<S>;
  using Acc = Accumulator<H::kIntegerScores>;
  using Scores = Acc[H::kScores];
  // Whether sm90/capped_scores.cuh does what rules ask for.
  static constexpr bool kCapped = S.rules.softcap && !S.rules.alibi && !S.rules.biased() &&
                                  !S.rules.score_mod && !H::kTokenK;
  static constexpr bool kRuled = S.rules.change_scores() && !kCapped && !kColumnStarts<S>;
  // Scales of tokens, and rules, make exponents of scores: floats in their place, or their bits.
  static constexpr bool kExponents = H::kTokenK || kRuled;
  static constexpr bool kAsIntegers = H::kIntegerScores && !kExponents;
  // Floats whose bits are compared as integers, for which there is a three-way maximum. That is
  // right unless all of them are negative; what keys add is biased so that few are.
  static constexpr bool kCompareBits =
      kExponents && H::kIntegerScores && (kBiased<S> || kCapUnits<S>) &&
      S.p_range == PRange::block;
  static constexpr bool kUnitSlope = kExponents && !kCapUnits<S> && !kSlopeUnits<S>;
  // Whether a key may be the lowest: expressions that are asked may make it so.
  template <bool Masked>
  static constexpr bool kMayHide = Masked || (kColumnStarts<S> && S.rules.score_mod);
  // Below every score: what stands for a key that is not seen.
  static constexpr int kLowestBits = kAsIntegers ? 0x80000000 : 0xff800000;

  static __device__ __forceinline__ float value(Acc x) {
    if constexpr (kColumnStarts<S>) {
      return __int_as_float(x) - kMagic;
    } else if constexpr (H::kIntegerScores && kExponents) {
      return __int_as_float(x);
    } else {
      return static_cast<float>(x);
    }
  }
  // The same plus kStart, which costs nothing.
  static constexpr float kStart = kColumnStarts<S> ? kMagic : 0.0f;
  static __device__ __forceinline__ float started(Acc x) {
    if constexpr (kColumnStarts<S>) {
      return __int_as_float(x);
    } else {
      return value(x);
    }
  }
  static __device__ __forceinline__ bool is_lowest(Acc x) { return bits_of(x) == kLowestBits; }
  static __device__ __forceinline__ Acc lowest() {
    if constexpr (H::kIntegerScores) {
      return kLowestBits;
    } else {
      return __int_as_float(kLowestBits);
    }
  }
  template <bool Exact = false>
  static __device__ __forceinline__ Acc larger(Acc a, Acc b) {
    if constexpr (kAsIntegers) {
      return max(a, b);
    } else if constexpr (kCompareBits && !Exact) {
      return max(a, b);
    } else if constexpr (H::kIntegerScores) {
      return __float_as_int(fmaxf(__int_as_float(a), __int_as_float(b)));
    } else {
      return fmaxf(a, b);
    }
  }

  // A float as what holds scores.
  static __device__ __forceinline__ int like(int, float x) { return __float_as_int(x); }
  static __device__ __forceinline__ float like(float, float x) { return x; }

 private:
  static __device__ __forceinline__ int bits_of(int x) { return x; }
  static __device__ __forceinline__ int bits_of(float x) { return __float_as_int(x); }
};
