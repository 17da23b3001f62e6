// The tokens that stand for all when a mean is taken; reference/smoothing.py takes the same.
#pragma once
#include "numeric.cuh"

// Tokens that a sample is taken of.
constexpr int kSample = 512;

// The i-th token of the sample.
__device__ __forceinline__ i64 sample_token(int i, int seqlen) {
  return seqlen > kSample ? static_cast<i64>(i) * seqlen / kSample : i;
}
