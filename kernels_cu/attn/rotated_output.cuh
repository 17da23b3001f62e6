// O of a rotated V, rotated back along the channels of a row.
#pragma once
#include "attn/channel_terms.cuh"
#include "numeric.cuh"
#include "rotation.cuh"

// What a lane has of 16 rows: column i, element e as in `store_rows`. A channel's bits are, from
// the lowest, one of e, two of the lane and the others of i; or, `Adjacent`, one of e, two of i,
// two of the lane and the others of i.
template <int HeadDim, bool Adjacent>
struct RotatedOutput {
  static constexpr int kColumns = HeadDim / 8;
  static constexpr int kLaneBit = Adjacent ? 3 : 1;
  float x[kColumns][4];

  template <class O, class Terms>
  __device__ __forceinline__ RotatedOutput(O o, Terms terms, int head_dim, int lane) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const ChannelTerms term = terms(channel(i, lane));
#pragma unroll
      for (int e = 0; e < 4; ++e) x[i][e] = o(i, e) * (e % 2 ? term.scale.y : term.scale.x);
    }
    const int block = rotation_block(head_dim);
#pragma unroll
    for (int bit = 0; 1 << bit < HeadDim; ++bit) {
      if (1 << bit < block) add_and_subtract(bit, lane);
    }
    const float factor = rotation_scale(block);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[i][e] *= factor * rotation_sign(channel(i, lane) + e % 2);
    }
  }

 private:
  static __device__ __forceinline__ int channel(int i, int lane) {
    const int t = lane % 4;
    return Adjacent ? i / 4 * 32 + 8 * t + i % 4 * 2 : 8 * i + 2 * t;
  }

  // Of every two channels that differ in a bit: their sum and their difference.
  __device__ __forceinline__ void add_and_subtract(int bit, int lane) {
    if (bit == 0) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        pair(x[i][0], x[i][1]);
        pair(x[i][2], x[i][3]);
      }
    } else if (bit == kLaneBit || bit == kLaneBit + 1) {
      const int step = 1 << (bit - kLaneBit);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float other = __shfl_xor_sync(0xffffffffu, x[i][e], step);
          x[i][e] = lane & step ? other - x[i][e] : x[i][e] + other;
        }
      }
    } else {
      const int step = 1 << (bit < kLaneBit ? bit - 1 : bit - 3);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if ((i & step) || (i | step) >= kColumns) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) pair(x[i][e], x[i | step][e]);
      }
    }
  }

  static __device__ __forceinline__ void pair(float& low, float& high) {
    const float difference = low - high;
    low += high;
    high = difference;
  }
};
