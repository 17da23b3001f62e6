// Sum, smallest and largest element of channels over rows, always added in the same order.
#pragma once
#include "quant/chunk.cuh"

// Tokens that stand for all when a mean is taken of a sample; reference/smoothing.py takes the
// same.
constexpr int kSample = 512;

// The i-th token of the sample.
__device__ __forceinline__ i64 sample_token(int i, int seqlen) {
  return seqlen > kSample ? static_cast<i64>(i) * seqlen / kSample : i;
}

// Of the channels of one chunk. Kinds is 1 (the sum) or 3 (low and high too, in the input's type).
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
};

// How a CTA reads rows: lanes side by side along a row, as many rows at a time as threads allow.
template <Type T, int HeadDim, int Threads>
struct RowGroups {
  static constexpr int kElements = Chunk<T>::kElements;
  static constexpr int kLanes = HeadDim / kElements;
  static constexpr int kGroups = Threads / kLanes;  // a few threads may be left over
  static constexpr int kBatch = 8;  // loads that a thread has under way at a time

  static __device__ __forceinline__ int group() { return threadIdx.x / kLanes; }
  static __device__ __forceinline__ int channel() { return threadIdx.x % kLanes * kElements; }

  // Whether the thread has channels of a head with `head_dim` of them.
  static __device__ __forceinline__ bool inside(int head_dim) {
    return group() < kGroups && channel() < head_dim;
  }

  // Adds the thread's share of `count` rows to its moments, `Batch` loads at a time. Row i lies
  // token(i) strides, of bytes, after `first`.
  template <bool Aligned, int Batch, int Kinds, class Token>
  static __device__ __forceinline__ void add_rows(Moments<T, Kinds>& moments, const char* first,
                                                  i64 stride, int count, bool inside,
                                                  Token token) {
    const char* source = first + channel() * bytes_of(T);
    const auto add_batch = [&](int row, auto whole) {
      Chunk<T> chunk[Batch];
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        const int at = row + i * kGroups;
        chunk[i].template load<Aligned, false>(source + token(at) * stride,
                                               inside && (whole.value || at < count));
      }
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        if (whole.value || row + i * kGroups < count) moments.add(chunk[i]);
      }
    };
    int row = group();
    for (; row + (Batch - 1) * kGroups < count; row += Batch * kGroups) {
      add_batch(row, Bool<true>{});
    }
    if (row < count) add_batch(row, Bool<false>{});
  }
};

// One token's NaN or infinity must not reach the others through the mean.
__device__ __forceinline__ float mean_of(float sum, int count) {
  const float mean = __fdiv_rn(sum, static_cast<float>(count));
  return fabsf(mean) < kInf ? mean : 0.0f;
}

// Joins what the groups have seen.
template <Type T, int HeadDim, int Threads, int Kinds>
struct GroupMoments {
  using Groups = RowGroups<T, HeadDim, Threads>;
  static_assert(Threads >= HeadDim);
  float part[Kinds][Groups::kGroups][HeadDim];

  // Calls result(kind, channel, x): the sum, low and high of each channel in turn.
  template <class F>
  __device__ __forceinline__ void join(const Moments<T, Kinds>& mine, F result) {
    constexpr int kPerWord = Chunk<T>::kPerWord;
    if (Groups::group() < Groups::kGroups) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float x[3][kPerWord];
        mine.low.widen(x[1], w);
        mine.high.widen(x[2], w);
#pragma unroll
        for (int i = 0; i < kPerWord; ++i) {
          x[0][i] = mine.sum[w * kPerWord + i];
#pragma unroll
          for (int kind = 0; kind < Kinds; ++kind) {
            part[kind][Groups::group()][Groups::channel() + w * kPerWord + i] = x[kind][i];
          }
        }
      }
    }
    __syncthreads();
    const int channel = threadIdx.x;
    if (channel >= HeadDim) return;
#pragma unroll
    for (int kind = 0; kind < Kinds; ++kind) {
      float x = part[kind][0][channel];
#pragma unroll
      for (int group = 1; group < Groups::kGroups; ++group) {
        const float y = part[kind][group][channel];
        x = kind == 0 ? x + y : kind == 1 ? ptx::min_nan(x, y) : ptx::max_nan(x, y);
      }
      result(kind, channel, x);
    }
  }
};
