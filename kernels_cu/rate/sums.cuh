// Where products of tensor cores are added up, and what is made of them.
#pragma once
#include "rate/rate_params.cuh"

template <ProductRateSpec S>
using Sum = Accumulator<is_integer(S.type)>;

template <ProductRateSpec S, int Count>
__device__ __forceinline__ void store_sum(const ProductRateParams& p, const Sum<S> (&d)[Count]) {
  // Integers may exceed their range and begin again, which C++ defines of unsigned ones.
  typename Choice<is_integer(S.type), u32, float>::type sum = 0;
#pragma unroll
  for (int i = 0; i < Count; ++i) sum += d[i];
  static_cast<Sum<S>*>(p.sums)[blockIdx.x * S.num_threads + threadIdx.x] = sum;
}
