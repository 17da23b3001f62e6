// Sum, smallest and largest element of channels over rows, always added in the same order.
#pragma once
#include "quant/chunk_moments.cuh"
#include "quant/own_channels.cuh"

// Tokens that stand for all when a mean is taken of a sample; reference/smoothing.py takes the
// same.
constexpr int kSample = 512;

// The i-th token of the sample.
__device__ __forceinline__ i64 sample_token(int i, int seqlen) {
  return seqlen > kSample ? static_cast<i64>(i) * seqlen / kSample : i;
}

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
    add_steps<Aligned, Batch, kGroups>(moments, first, stride, group(), count, inside, token);
  }

  // The rows from `row` on, `Step` apart, up to `count`.
  template <bool Aligned, int Batch, int Step, int Kinds, class Token>
  static __device__ __forceinline__ void add_steps(Moments<T, Kinds>& moments, const char* first,
                                                   i64 stride, int row, int count, bool inside,
                                                   Token token) {
    const char* source = first + channel() * bytes_of(T);
    const auto add_batch = [&](int row, auto whole) {
      Chunk<T> chunk[Batch];
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        const int at = row + i * Step;
        chunk[i].template load<Aligned, false>(source + token(at) * stride,
                                               inside && (whole.value || at < count));
      }
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        if (whole.value || row + i * Step < count) moments.add(chunk[i]);
      }
    };
    for (; row + (Batch - 1) * Step < count; row += Batch * Step) {
      add_batch(row, Bool<true>{});
    }
    if (row < count) add_batch(row, Bool<false>{});
  }
};

// A channel of some rows of sums (kind 0), of smallest or of largest elements.
template <int Rows, int HeadDim>
__device__ __forceinline__ float join_rows(int kind, const float (*row)[HeadDim], int channel) {
  float x = row[0][channel];
#pragma unroll
  for (int i = 1; i < Rows; ++i) {
    const float y = row[i][channel];
    x = kind == 0 ? x + y : kind == 1 ? ptx::min_nan(x, y) : ptx::max_nan(x, y);
  }
  return x;
}

// One token's NaN or infinity must not reach the others through the mean.
__device__ __forceinline__ float mean_of(float sum, int count) {
  const float mean = __fdiv_rn(sum, static_cast<float>(count));
  return fabsf(mean) < kInf ? mean : 0.0f;
}

// Joins what the groups have seen.
template <Type T, int HeadDim, int Threads, int Kinds>
struct GroupMoments {
  using Groups = RowGroups<T, HeadDim, Threads>;
  float part[Kinds][Groups::kGroups][HeadDim];

  // Calls result(kind, channel, x): the sum, low and high of each channel in turn.
  template <class F>
  __device__ __forceinline__ void join(const Moments<T, Kinds>& mine, F result) {
    if (Groups::group() < Groups::kGroups) {
      const int first = Groups::channel();
#pragma unroll
      for (int kind = 0; kind < Kinds; ++kind) {
        mine.put(kind, part[kind][Groups::group()] + first);
      }
    }
    __syncthreads();
    for_own_channels<HeadDim, Threads>([&](int channel) {
#pragma unroll
      for (int kind = 0; kind < Kinds; ++kind) {
        result(kind, channel, join_rows<Groups::kGroups>(kind, part[kind], channel));
      }
    });
  }
};
