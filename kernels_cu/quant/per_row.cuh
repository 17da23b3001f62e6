// Rows of a tile that lanes share: their parts, and one number for each of them.
#pragma once
#include "ptx/reduce.cuh"

// The parts of a row that have scales of their own. `Lanes` is a `RowLanes`; `Group` the channels
// that share a scale, or 0 for all of a row.
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

// One number for each row, in one lane of those that share it: lane l owns rows l, l + kOwners, ...
// What is done once a row, such as a division, then costs each lane Rows / kOwners of them and not
// Rows.
template <int Lanes, int Rows>
struct PerRow {
  static constexpr int kOwners = min_of(Lanes, Rows);
  static constexpr int kOwn = Rows / kOwners;
  static_assert(Rows % kOwners == 0);
  float own[kOwn];

  // Joins what each lane has of each row.
  template <class Join>
  __device__ __forceinline__ PerRow(float (&part)[Rows], Join join) {
    // Two lanes that differ in one bit share out the rows that differ in it, until each is left
    // with its own; so 8 rows take 4 + 2 + 1 shuffles where one after the other would take 24.
#pragma unroll
    for (int bit = kOwners / 2; bit > 0; bit /= 2) {
      const bool upper = threadIdx.x & bit;
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        if (r % kOwners < bit) {
          const float keep = upper ? part[r + bit] : part[r];
          const float give = upper ? part[r] : part[r + bit];
          part[r] = join(keep, __shfl_xor_sync(0xffffffffu, give, bit));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      own[i] = part[i * kOwners];
#pragma unroll
      for (int bit = kOwners; bit < Lanes; bit *= 2) {
        own[i] = join(own[i], __shfl_xor_sync(0xffffffffu, own[i], bit));
      }
    }
  }

  // Calls f(row, number) once for each row.
  template <class F>
  __device__ __forceinline__ void for_each(F f) const {
    const int lane = threadIdx.x % Lanes;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (lane < kOwners) f(i * kOwners + lane, own[i]);
    }
  }

  // Takes f(row) for the number of each row.
  template <class F>
  __device__ __forceinline__ void replace(F f) {
    const int lane = threadIdx.x % kOwners;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own[i] = f(i * kOwners + lane);
  }

  // Tells every lane what f makes of the number of each row.
  template <class F>
  __device__ __forceinline__ void share(float (&all)[Rows], F f) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float mine = f(own[i]);
#pragma unroll
      for (int owner = 0; owner < kOwners; ++owner) {
        all[i * kOwners + owner] = __shfl_sync(0xffffffffu, mine, owner, Lanes);
      }
    }
  }
};
