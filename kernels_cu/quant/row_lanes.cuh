// Which channels of a row a lane has.
#pragma once
#include "quant/chunk.cuh"

// How a row lies across lanes: a power of two of them, each with every kLanes-th run of Run
// chunks.
template <Type In, int HeadDim, int MaxLanes = kWarpSize, int Run = 1>
struct RowLanes {
  static constexpr int kElements = Chunk<In>::kElements;
  static constexpr int kRowChunks = HeadDim / kElements;
  static constexpr int kLanes = min_of((kRowChunks & -kRowChunks) / Run, MaxLanes);
  static constexpr int kChunks = kRowChunks / kLanes;  // of one row in one lane
  static constexpr int kRun = Run;
  static constexpr int kWarpRows = kWarpSize / kLanes;
  // Rows that a lane has of Q, K (unless a whole block has to fit) and of one pass over V: 8 to 12
  // loads are under way at a time.
  static constexpr int kRows = kChunks == 1 ? 8 : 4;

  static __device__ __forceinline__ int lane(u32 thread = threadIdx.x) { return thread % kLanes; }
  static __device__ __forceinline__ int group(u32 thread = threadIdx.x) { return thread / kLanes; }
  // Of a lane's first channels, and from there to those of a chunk.
  static __host__ __device__ constexpr int first_channel(int lane) {
    return lane * Run * kElements;
  }
  static __host__ __device__ constexpr int channel_offset(int chunk) {
    return (chunk / Run * kLanes * Run + chunk % Run) * kElements;
  }
  static __device__ __forceinline__ int channel(int chunk) {
    return first_channel(lane()) + channel_offset(chunk);
  }
};
