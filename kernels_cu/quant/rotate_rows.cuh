// The rotation of rows in registers, each operation rounded as reference/rotation.py has it.
#pragma once
#include "ptx/registers.cuh"
#include "quant/lane_signs.cuh"
#include "rotation.cuh"

// Sums and differences of what lies `step` channels apart: half of the multiplication by a matrix.
__device__ __forceinline__ void butterfly(float& low, float& high) {
  const float sum = __fadd_rn(low, high);
  high = __fsub_rn(low, high);
  low = sum;
}

// The same with a `high` that stands for its product with 1 or -1: which is exact, so this rounds
// as the sum or difference does.
__device__ __forceinline__ void butterfly(float& low, float& high, float sign) {
  const float sum = __fmaf_rn(high, sign, low);
  high = __fmaf_rn(high, -sign, low);
  low = sum;
}

// Of two lanes that differ in a bit, with the signs 1 and -1: sum and difference.
__device__ __forceinline__ void exchange(float& x, int bit, float sign) {
  x = __fmaf_rn(x, sign, __shfl_xor_sync(0xffffffffu, x, bit));
}

// Rows as `rotate_rows` has them, of which a lane has kRow numbers: runs of neighbouring channels.
template <class Lanes, int Rows>
struct RowRotation {
  static constexpr int kRow = Lanes::kChunks * Lanes::kElements;
  static constexpr int kRun = Lanes::kRun * Lanes::kElements;
  static constexpr int kLanes = Lanes::kLanes;
  // The block of rows without padding. Others have shorter ones.
  static constexpr int kLongest = rotation_block(kRow * kLanes);
  static_assert(kLongest >= kRun * kLanes);
  using Signs = LaneSigns<Lanes>;
  float (&x)[Rows][kRow];

  template <class F>
  __device__ __forceinline__ void for_each(F f) const {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int e = 0; e < kRow; ++e) f(x[r][e], e);
    }
  }

  // Calls f(low, high) for the numbers of a lane that are `step` apart.
  template <class F>
  static __device__ __forceinline__ void for_pairs(int step, F f) {
#pragma unroll
    for (int e = 0; e < kRow; ++e) {
      if ((e & step) == 0) f(e, e + step);
    }
  }

  // Both return what the numbers are yet to be multiplied by.
  //
  // Signs cost nothing: only those of what is added to each other matter, and the one that is left.
  __device__ __forceinline__ float rotate_longest() const {
    Signs signs;
    const auto add_and_subtract = [&](int step) {
      for_pairs(step, [&](int low, int high) {
        const float sign = Signs::mine(signs.of[low] ^ signs.of[high]);
        signs.of[high] = signs.of[low];
#pragma unroll
        for (int r = 0; r < Rows; ++r) butterfly(x[r][low], x[r][high], sign);
      });
    };
#pragma unroll
    for (int step = 1; step < kRun; step *= 2) add_and_subtract(step);
#pragma unroll
    for (int bit = 1; bit < kLanes; bit *= 2) {
#pragma unroll
      for (int e = 0; e < kRow; ++e) {
        const u32 others = Signs::exchanged(signs.of[e], bit);
        const float sign = Signs::mine(signs.of[e] ^ others ^ Signs::upper(bit));
        signs.of[e] = others;
#pragma unroll
        for (int r = 0; r < Rows; ++r) exchange(x[r][e], bit, sign);
      }
    }
#pragma unroll
    for (int step = kRun; step * kLanes < kLongest; step *= 2) add_and_subtract(step);
    const float scale = rotation_scale(kLongest);
    if constexpr (kLongest == kRow * kLanes) return Signs::mine(signs.of[0]) * scale;
    // Several blocks have signs of their own.
    for_each([&](float& one, int e) { one *= Signs::mine(signs.of[e]); });
    return scale;
  }

  __device__ __forceinline__ float rotate_shorter(int block) const {
    const auto add_and_subtract = [&](int step) {
      for_pairs(step, [&](int low, int high) {
#pragma unroll
        for (int r = 0; r < Rows; ++r) butterfly(x[r][low], x[r][high]);
      });
    };
    // Made anew for other rows: the compiler would else keep the sign of every number.
    const int lane = ptx::opaque(Lanes::lane());
    u32 signs[Lanes::kChunks];
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
      // Made anew for other rows: the compiler would else keep the sign of every number.
      signs[c] = rotation_signs(Lanes::first_channel(lane) + Lanes::channel_offset(c));
    }
    for_each([&](float& one, int e) {
      const u32 sign = signs[e / Lanes::kElements] >> e % Lanes::kElements << 31;
      one = __uint_as_float(__float_as_uint(one) ^ sign);
    });
#pragma unroll
    for (int step = 1; step < kRun; step *= 2) {
      if (block > step) add_and_subtract(step);
    }
#pragma unroll
    for (int bit = 1; bit < kLanes; bit *= 2) {
      if (block > bit * kRun) {
        const float sign = lane & bit ? -1.0f : 1.0f;
        for_each([&](float& one, int) { exchange(one, bit, sign); });
      }
    }
#pragma unroll
    for (int step = kRun; 2 * step * kLanes < kLongest; step *= 2) {
      if (block > step * kLanes) add_and_subtract(step);
    }
    return rotation_scale(block);
  }
};

// Rotates rows of which the lane has x[row][chunk][element] at Lanes::channel(chunk) + element, but
// for the factor of the lane's numbers that it returns, block^-1/2 or its negative. `block` is
// rotation_block(head_dim), at least 8; what pads the rows is zero and stays so. All lanes of the
// warp take part.
template <class Lanes, int Rows>
__device__ __forceinline__ float rotate_rows(
    float (&x)[Rows][Lanes::kChunks][Lanes::kElements], int block) {
  using Rotation = RowRotation<Lanes, Rows>;
  const Rotation rows{reinterpret_cast<float(&)[Rows][Rotation::kRow]>(x)};
  return block == Rotation::kLongest ? rows.rotate_longest() : rows.rotate_shorter(block);
}
