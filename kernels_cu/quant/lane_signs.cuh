// Signs of a rotation that differ from lane to lane but are known to the compiler.
#pragma once
#include "rotation.cuh"

// A sign is a number with one bit for each lane of a row, set for -1.
template <class Lanes>
struct LaneSigns {
  static constexpr int kCount = Lanes::kChunks * Lanes::kElements;
  static constexpr u32 kAll = (1ull << Lanes::kLanes) - 1;
  // Of what the lanes of a row have in each register: at first those of the rotation.
  u32 of[kCount];

  __device__ __forceinline__ LaneSigns() {
    constexpr Table table;
#pragma unroll
    for (int e = 0; e < kCount; ++e) of[e] = table.of[e];
  }

  // The lane's own, as a factor.
  static __device__ __forceinline__ float mine(u32 sign) {
    // One register will do for a sign and its opposite.
    return sign & 1 ? -factor(sign ^ kAll) : factor(sign);
  }

  // Those that lanes have whose numbers differ from here in one bit.
  static __device__ constexpr u32 exchanged(u32 sign, int bit) {
    return (sign & upper(bit)) >> bit | (sign & ~upper(bit)) << bit;
  }

  // -1 for lanes whose number has the bit.
  static __device__ constexpr u32 upper(int bit) {
    u32 lanes = 0;
    for (int lane = 0; lane < Lanes::kLanes; ++lane) {
      if (lane & bit) lanes |= 1u << lane;
    }
    return lanes;
  }

 private:
  struct Table {
    u32 of[kCount] = {};
    constexpr Table() {
      for (int lane = 0; lane < Lanes::kLanes; ++lane) {
        for (int e = 0; e < kCount; ++e) {
          const int channel =
              Lanes::first_channel(lane) +
                              Lanes::channel_offset(e / Lanes::kElements) + e % Lanes::kElements;
          of[e] |= (kRotationSigns.word[channel / 32] >> channel % 32 & 1u) << lane;
        }
      }
    }
  };

  static __device__ __forceinline__ float factor(u32 sign) {
    if (sign == 0) return 1.0f;
    return __uint_as_float(0x3f800000u | (sign << (31 - Lanes::lane()) & 0x80000000u));
  }
};
