// What the kernels that measure the GPU's ceilings fix at compile time, and their run-time
// arguments; cuattn/specs/rates.py mirrors the former, cuattn/compile/params.py reads the latter.
#pragma once
#include "numeric.cuh"
#include "spec.cuh"

struct MemoryRateSpec {
  bool writes;       // copies, or only reads
  int chunks;        // of 16 bytes, that a thread has under way
  int num_threads;
  int min_ctas;      // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct MemoryRateParams {
  const void* from;
  void* to;          // the copy; or u32 [thread], the exclusive or of what the thread has read
  i64 chunks;        // of 16 bytes, a multiple of those that a CTA has under way
};

struct ProductRateSpec {
  Type type;         // of the elements of both operands
  bool warpgroups;   // multiply (wgmma), or single warps (mma.sync)
  int a_rows;        // 32 bytes of a row are one step of k
  int b_rows;
  int row_bytes;
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct ProductRateParams {
  const void* a;     // [a_rows][row_bytes]
  const void* b;     // [b_rows][row_bytes]
  void* sums;        // int32 or float32 [thread], of the thread's elements of A B^T, `rounds` times
  i32 rounds;
};

// What products are added up in.
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
