// What the expressions of a caller name, as kernels are told it.
#pragma once
#include "numeric.cuh"

// An array, or a number; see attn/user_arrays.cuh.
struct UserValue {
  const void* array;
  f32 real;
  i32 whole;
};
