// The randomized Hadamard matrix of head_dim: signs of channels, and blocks of one rotation;
// reference/rotation.py has the same.
#pragma once
#include "numeric.cuh"

// Of the channels that have kernels, one bit each: set for -1.
struct RotationSigns {
  u32 word[512 / 32] = {};

  // xorshift32 (Marsaglia, 2003); a channel's sign is the upper bit of its number.
  constexpr RotationSigns() {
    u32 state = 0x9e3779b9u;
    for (int channel = 0; channel < 512; ++channel) {
      state ^= state << 13;
      state ^= state >> 17;
      state ^= state << 5;
      word[channel / 32] |= (state >> 31) << (channel % 32);
    }
  }
};
__constant__ constexpr RotationSigns kRotationSigns;

// Those of up to 32 channels of which the first is given, from bit 0 on, as far as they lie in
// one aligned group of 32.
__device__ __forceinline__ u32 rotation_signs(int channel) {
  return kRotationSigns.word[channel / 32] >> (channel % 32);
}

__device__ __forceinline__ float rotation_sign(int channel) {
  return rotation_signs(channel) & 1 ? -1.0f : 1.0f;
}

// Channels that are rotated together: the largest power of two that divides head_dim.
__host__ __device__ constexpr int rotation_block(int head_dim) { return head_dim & -head_dim; }

// block^-1/2, rounded to nearest.
__device__ __forceinline__ float rotation_scale(int block) {
  const int log2 = 31 - __clz(block);
  const float odd = log2 % 2 ? 0.70710678118654752f : 1.0f;
  return odd / static_cast<float>(1 << log2 / 2);
}
