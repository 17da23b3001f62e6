// What two rows carry from one block of keys to the next.
#pragma once
#include "attn/p_range.cuh"
#include "ptx/math.cuh"
#include "ptx/shared.cuh"
#include "sm90/tile_shape.cuh"

// Parked, it lies in shared memory between `park` and `fetch`, and its registers are free. Where a
// row's reference moves, rescale(half, steps, shrink) is called for its O; shrink = 2^-steps if
// references move by whole steps.
template <WgmmaSpec S>
struct RowState {
  static constexpr bool kParked = TileShape<S>::kParkedRows;
  static constexpr bool kLocal = S.p_range == PRange::block;

  float reference[2];  // exponent that O and the sum are relative to
  float sum[2];        // of 2^(exponent - reference), of this lane's columns only
  float scale[2];      // softmax_scale * log2 e * sq: from a score to an exponent, or to one in
                       // multiples of a slope
  float steepness[2];  // with kColumnStarts, of what a key adds, for a scale of K that is 1
  u32 parking;         // 16 bytes of each thread, and 16 more after those of all threads
  static constexpr u32 kScale = 16 * kWarpgroupSize * S.groups;

  __device__ __forceinline__ void start(const float (&row_scale)[2], float key_slope, u32 smem) {
    parking = smem;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      reference[half] = kNoKeySeen;
      sum[half] = 0.0f;
      scale[half] = row_scale[half];
      // Of a row whose scale is 0 it is not NaN, which comparisons may leave out.
      if constexpr (kColumnStarts<S>) {
        steepness[half] = scale[half] == 0.0f ? kInf : __fdividef(key_slope, scale[half]);
      }
    }
    if constexpr (kColumnStarts<S>) {
      ptx::park(parking + kScale, make_float4(scale[0], scale[1], steepness[0], steepness[1]));
    } else if constexpr (kParked) {
      ptx::park(parking + kScale, make_float2(scale[0], scale[1]));
    }
    park();
  }
  __device__ __forceinline__ void fetch_scale() {
    if constexpr (kParked) {
      const float2 x = ptx::fetch_two(parking + kScale);
      scale[0] = x.x;
      scale[1] = x.y;
    }
  }
  __device__ __forceinline__ void fetch_steepness() {
    const float4 x = ptx::fetch_four(parking + kScale);
    steepness[0] = x.z;
    steepness[1] = x.w;
  }
  __device__ __forceinline__ void park() const {
    if constexpr (kParked) {
      ptx::park(parking, make_float4(reference[0], reference[1], sum[0], sum[1]));
    }
  }
  __device__ __forceinline__ void fetch() {
    if constexpr (kParked) {
      const float4 x = ptx::fetch_four(parking);
      reference[0] = x.x;
      reference[1] = x.y;
      sum[0] = x.z;
      sum[1] = x.w;
    }
  }

  // Whether some lane of the warp has a maximum that is larger than its row's reference.
  __device__ __forceinline__ bool exceeded(const float (&block_max)[2], float slack) const {
    return __any_sync(0xffffffffu, block_max[0] > reference[0] + slack ||
                                       block_max[1] > reference[1] + slack);
  }

  // False if a reference has to move by more than one step of a power of two, or by another amount
  // at all. Which rows move by one says a vote, for which no lane needs the maximum of its row.
  template <class Rescale>
  __device__ __forceinline__ bool move_one_step(const float (&block_max)[2], Rescale rescale,
                                                int lane) {
    if constexpr (S.p_range != PRange::row_pow2) return !exceeded(block_max, 0.0f);
    u32 over[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      over[half] = __ballot_sync(0xffffffffu, block_max[half] > reference[half]);
    }
    if ((over[0] | over[1]) == 0) return true;
    if (exceeded(block_max, 1.0f)) return false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (over[half] == 0) continue;
      const bool moves = over[half] >> (lane & 28) & 15;  // of the row's four lanes
      const float shrink = moves ? 0.5f : 1.0f;
      reference[half] += moves ? 1.0f : 0.0f;
      sum[half] *= shrink;
      rescale(half, moves ? 1 : 0, shrink);
    }
    return true;
  }

  template <class Rescale>
  __device__ __forceinline__ void move(const float (&block_max)[2], Rescale rescale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float next = next_reference<S.p_range>(reference[half], block_max[half]);
      const float shift = reference[half] - next;
      if (!kLocal && !__any_sync(0xffffffffu, shift != 0.0f)) continue;
      const float shrink = ptx::ex2(shift);
      reference[half] = next;
      sum[half] *= shrink;
      rescale(half, min_of(__float2int_rn(-shift), 31), shrink);
    }
  }

  // Adds the row sums of the four lanes that share a row.
  __device__ __forceinline__ void finish() {
    fetch();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    }
  }
};
