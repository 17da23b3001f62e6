// What the scores of a block are multiplied by on their way to exponents.
#pragma once

// One number for each of a lane's two rows, in each part of the block whose keys have one.
template <int Parts>
struct Slopes {
  float at[Parts][2];

  // To of(part, half).
  template <class Of>
  __device__ __forceinline__ void set(Of of) {
#pragma unroll
    for (int part = 0; part < Parts; ++part) {
#pragma unroll
      for (int half = 0; half < 2; ++half) at[part][half] = of(part, half);
    }
  }
};
