// Means of channels over all rows, made of those of groups of consecutive rows, no few of which can
// move them far. reference/smoothing.py says which groups, and how far.
#pragma once
#include "quant/moments.cuh"

constexpr int kMeanGroups = 16;
constexpr float kFence = 3.0f;

// The first of `rows` rows that belongs to a group, or to a later one.
__host__ __device__ constexpr int group_start(int group, int rows) {
  return static_cast<int>(static_cast<u64>(group) * static_cast<u64>(rows) / kMeanGroups);
}

__host__ __device__ constexpr int group_rows(int group, int rows) {
  return group_start(group + 1, rows) - group_start(group, rows);
}

// Batcher's odd-even mergesort: merges sorted runs of `Run`, each pass comparing what is `Step`
// apart. Which these are is known at compile time, so everything stays in registers.
template <int Count, int Run = 1, int Step = 1>
__device__ __forceinline__ void sort_up(float (&x)[Count]) {
#pragma unroll
  for (int i = Step % Run; i + Step < Count; ++i) {
    if ((i - Step % Run) / Step % 2 != 0 || i / (2 * Run) != (i + Step) / (2 * Run)) continue;
    const float low = fminf(x[i], x[i + Step]);
    x[i + Step] = fmaxf(x[i], x[i + Step]);
    x[i] = low;
  }
  if constexpr (Step > 1) {
    sort_up<Count, Run, Step / 2>(x);
  } else if constexpr (2 * Run < Count) {
    sort_up<Count, 2 * Run, 2 * Run>(x);
  }
}

// The mean of a channel over `rows` rows, from the sums of the groups. If it is to be robust, means
// of groups that are not finite are left out, and the others limited to Tukey's outer fences.
__device__ __forceinline__ float mean_of_groups(const float (&sum)[kMeanGroups], int rows,
                                                bool robust) {
  float total = 0.0f;
#pragma unroll
  for (int g = 0; g < kMeanGroups; ++g) total += sum[g];
  if (!robust) return mean_of(total, rows);

  // Groups have this many rows or one more; of one without rows the mean is NaN.
  const int fewer = rows / kMeanGroups;
  const float of_fewer = __fdiv_rn(1.0f, static_cast<float>(fewer));
  const float of_more = __fdiv_rn(1.0f, static_cast<float>(fewer + 1));
  float mean[kMeanGroups], sorted[kMeanGroups];
  int number = 0;
#pragma unroll
  for (int g = 0; g < kMeanGroups; ++g) {
    mean[g] = sum[g] * (group_rows(g, rows) == fewer ? of_fewer : of_more);
    const bool finite = fabsf(mean[g]) < kInf;
    sorted[g] = finite ? mean[g] : kInf;
    number += finite;
  }
  sort_up(sorted);
  const int first = (number + 1) / 4;
  float low = 0.0f, high = 0.0f;  // quartiles
#pragma unroll
  for (int i = 0; i < kMeanGroups; ++i) {
    const float x = sorted[i];  // before it is asked which one: an index must not be i's equal
    low = i == first ? x : low;
    high = i == number - 1 - first ? x : high;
  }
  const float reach = kFence * (high - low);
  int counted = 0;
  total = 0.0f;
#pragma unroll
  for (int g = 0; g < kMeanGroups; ++g) {
    if (!(fabsf(mean[g]) < kInf)) continue;
    const int weight = group_rows(g, rows);
    total += static_cast<float>(weight) * fminf(fmaxf(mean[g], low - reach), high + reach);
    counted += weight;
  }
  return mean_of(total, counted);
}

// Joins what a CTA has seen that reads the rows of each group apart.
template <Type T, int HeadDim, int Threads, int Kinds>
struct MeanGroups {
  using Groups = RowGroups<T, HeadDim, Threads>;
  // Rows of a group are shared out among as many parts as there are rows at a time for.
  static constexpr int kParts = max_of(Groups::kGroups / kMeanGroups, 1);
  static constexpr int kSlots = kMeanGroups * kParts;
  static constexpr int kExtremes = Kinds == 3 ? Groups::kGroups : 0;
  // Sums of slots, then the smallest elements that threads have seen, then the largest.
  float row[kSlots + 2 * kExtremes][HeadDim];

  // add(moments, group, part) adds the thread's share of a part's rows. Calls result(kind, channel,
  // x) with the mean over `rows` rows, low and high of each channel in turn.
  template <class Add, class F>
  __device__ __forceinline__ void join(int rows, bool robust, Add add, F result) {
    Moments<T, Kinds> moments;
    if (Groups::group() < Groups::kGroups) {
      const int first = Groups::channel();
#pragma unroll 1
      for (int slot = Groups::group(); slot < kSlots; slot += Groups::kGroups) {
        moments.clear_sums();
        add(moments, slot / kParts, slot % kParts);
        moments.put(0, row[slot] + first);
      }
      if constexpr (Kinds == 3) {
        moments.put(1, row[kSlots + Groups::group()] + first);
        moments.put(2, row[kSlots + kExtremes + Groups::group()] + first);
      }
    }
    __syncthreads();
    for_own_channels<HeadDim, Threads>([&](int channel) {
      float sum[kMeanGroups];
#pragma unroll
      for (int g = 0; g < kMeanGroups; ++g) {
        sum[g] = join_rows<kParts>(0, row + g * kParts, channel);
      }
      result(0, channel, mean_of_groups(sum, rows, robust));
      if constexpr (Kinds == 3) {
        result(1, channel, join_rows<kExtremes>(1, row + kSlots, channel));
        result(2, channel, join_rows<kExtremes>(2, row + kSlots + kExtremes, channel));
      }
    });
  }
};
