// The parts of a row that have scales of their own.
#pragma once
#include "numeric.cuh"

// `Lanes` is a `RowLanes`; `Group` the channels that share a scale, or 0 for all of a row.
template <class Lanes, int Group>
struct Sections {
  static constexpr bool kGroups = Group > 0;
  static constexpr int kCount = kGroups ? Lanes::kChunks : 1;  // that a lane has something of
  static constexpr int kChunks = Lanes::kChunks / kCount;      // of one in one lane
  static constexpr int kLanes = kGroups ? Group / Lanes::kElements : Lanes::kLanes;
  static_assert(Lanes::kLanes % kLanes == 0, "no group is that of two chunks");

  // Which of the row's groups the lane's s-th one is.
  static __device__ __forceinline__ int group(int s) {
    return kGroups ? Lanes::channel(s) / max_of(Group, 1) : 0;
  }
};
