// Sum, smallest and largest element of the channels of 16 bytes, over rows.
#pragma once
#include "quant/chunk.cuh"

// Kinds is 1 (the sum) or 3 (low and high too, in the input's type).
template <Type T, int Kinds>
struct Moments {
  static constexpr int kElements = Chunk<T>::kElements;
  static constexpr int kPerWord = Chunk<T>::kPerWord;
  float sum[kElements] = {};
  Chunk<T> low, high;

  __device__ __forceinline__ Moments() {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      low.word[w] = kInfBits<T>;
      high.word[w] = kInfBits<T> | kSignBits<T>;
    }
  }

  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (int i = 0; i < kElements; ++i) sum[i] = 0.0f;
  }

  __device__ __forceinline__ void add(const Chunk<T>& row) { add(row, row, row); }

  // A row of sums, of smallest and of largest elements of other rows.
  __device__ __forceinline__ void add(const Chunk<T>& sums, const Chunk<T>& lows,
                                      const Chunk<T>& highs) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float x[kPerWord];
      sums.widen(x, w);
#pragma unroll
      for (int i = 0; i < kPerWord; ++i) sum[w * kPerWord + i] += x[i];
      if constexpr (Kinds == 3) {
        low.word[w] = word_min<T>(low.word[w], lows.word[w]);
        high.word[w] = word_max<T>(high.word[w], highs.word[w]);
      }
    }
  }

  // Writes the sums (kind 0), the smallest or the largest elements.
  __device__ __forceinline__ void put(int kind, float* to) const {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float x[kPerWord];
      (kind == 1 ? low : high).widen(x, w);
#pragma unroll
      for (int i = 0; i < kPerWord; ++i) {
        to[w * kPerWord + i] = kind == 0 ? sum[w * kPerWord + i] : x[i];
      }
    }
  }
};
