// Shared memory of the quantizer, and largest magnitudes of scopes that several warps have parts
// of.
#pragma once
#include "layout.cuh"
#include "ptx/reduce.cuh"
#include "quant/token_ranks.cuh"
#include "quant/transposed_tile.cuh"

// Largest magnitudes that threads exchange: one of each warp, or of each scope of a tile.
template <QuantizeSpec S>
constexpr int kSharedMaxima =
    max_of(S.num_threads / kWarpSize,
           max_of(S.q_scope == Scope::thread ? S.q_tile / ThreadScope<false>::kTokens : 0,
                  S.k_scope == Scope::thread ? S.k_tile / ThreadScope<true>::kTokens : 0));

// What sorting takes, if keys are sorted.
template <bool Sorted>
struct SortingStorage {};
template <>
struct SortingStorage<true> {
  SortedTokens sorted;
};

template <QuantizeSpec S>
struct alignas(16) QuantizeStorage : SortingStorage<S.k_scope == Scope::sorted> {
  TransposedTile<S> codes;  // of V
  static constexpr int kChannels = max_of(S.head_dim, S.head_dim_v);
  f32 vector[kChannels];    // what V is smoothed by, and what makes codes of it,
  f32 factor[kChannels];    // if it has a scale per channel
  u32 amax[kSharedMaxima<S>];  // bits of floats that are not negative, which compare as they do
};

// From what each thread has to the largest of its `Warps` adjacent warps. NaN wins.
template <int Warps, QuantizeSpec S>
__device__ __forceinline__ float warps_amax(float amax, QuantizeStorage<S>& storage) {
  amax = ptx::max_across<kWarpSize>(amax);
  const int warp = threadIdx.x / kWarpSize;
  if (threadIdx.x % kWarpSize == 0) storage.amax[warp] = __float_as_uint(amax);
  __syncthreads();
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < Warps; ++i) {
    largest = max_of(largest, storage.amax[warp / Warps * Warps + i]);
  }
  return __uint_as_float(largest);
}

// From the largest magnitude of each row, a `PerRow`, to that of the row's scope. `T` is the `Rows`
// of Q or K.
template <class T, class Largest, QuantizeSpec S>
__device__ __forceinline__ void join_threads(Largest& largest, const T& rows,
                                             QuantizeStorage<S>& storage) {
  using Scopes = typename T::Threads;
  static_assert(T::kTokens % Scopes::kTile == 0, "quantize_spec.py: tiles");
  for (int i = threadIdx.x; i < T::kTokens / Scopes::kTokens; i += S.num_threads) {
    storage.amax[i] = 0;
  }
  __syncthreads();
  largest.for_each([&](int r, float amax) {
    // Rows past the end are zeros, but not after smoothing.
    if (rows.exists(r)) atomicMax(&storage.amax[Scopes::of(rows.row(r))], __float_as_uint(amax));
  });
  __syncthreads();
  largest.replace([&](int r) {
    return rows.exists(r) ? __uint_as_float(storage.amax[Scopes::of(rows.row(r))]) : 0.0f;
  });
}
