// Division by numbers that the host knows: three instructions instead of some twenty.
#pragma once
#include "numeric.cuh"

// As `reciprocal` in cuattn/kv/shares.py makes it of a positive number.
struct Reciprocal {
  u32 multiplier;
  u32 shift;
};

// The quotient of a number that is not negative, exactly.
__device__ __forceinline__ int divided(int n, const Reciprocal& by) {
  return static_cast<int>(__umulhi(2 * static_cast<u32>(n), by.multiplier) >> by.shift);
}
