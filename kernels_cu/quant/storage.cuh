// Shared memory of the quantizer, and largest magnitudes of scopes that several warps have parts
// of.
#pragma once
#include "layout.cuh"
#include "ptx/reduce.cuh"
#include "quant/rows.cuh"
#include "quant/token_ranks.cuh"
#include "quant/values.cuh"

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

// What smoothing subtracts from rows of each warp, if that is of use in shared memory. `Of` makes a
// type of its own, so that nothing takes no room.
template <bool Used, class Of, int Warps, int HeadDim>
struct WarpVectors {
  __device__ __forceinline__ f32* mine() { return nullptr; }
};
template <class Of, int Warps, int HeadDim>
struct WarpVectors<true, Of, Warps, HeadDim> {
  f32 of[Warps][HeadDim];
  __device__ __forceinline__ f32* mine() { return of[threadIdx.x / kWarpSize]; }
};
template <QuantizeSpec S, class Of, int HeadDim, bool Used>
using VectorsOf = WarpVectors<Used, Of, S.num_threads / kWarpSize, HeadDim>;

// Rows on their way to registers, and codes of V where they are transposed.
template <QuantizeSpec S, bool Both = S.staged && S.k_scope == Scope::sorted>
struct StagedTiles {
  union {
    typename Rows<S, Role::query>::Staged q;
    typename Rows<S, Role::key>::Staged k;
    TransposedTile<S> codes;
  };
};
// A CTA has K and V together. Codes of V take the place of its rows, which have been read by then.
template <QuantizeSpec S>
struct StagedTiles<S, true> {
  union {
    typename Rows<S, Role::query>::Staged q;
    typename Rows<S, Role::key>::Staged k;
  };
  union {
    typename Values<S>::Staged v;
    TransposedTile<S> codes;
  };
};

template <QuantizeSpec S>
struct alignas(S.staged ? 128 : 16) QuantizeStorage
    : SortingStorage<S.k_scope == Scope::sorted>, StagedTiles<S> {
  using Q = Rows<S, Role::query>;
  using K = Rows<S, Role::key>;
  using V = Values<S>;
  static constexpr bool kRowVectors = Q::kSharesVector || K::kSharesVector;
  static constexpr int kChannels = max_of(S.head_dim, S.head_dim_v);
  [[no_unique_address]] VectorsOf<S, K, S.head_dim, kRowVectors> row_vectors;
  [[no_unique_address]] VectorsOf<S, V, S.head_dim_v, S.v_staged && S.v_smooth> value_vectors;
  f32 vector[kChannels];    // of the head: K's for lse, or what V is smoothed by and what makes
  f32 factor[kChannels];    // codes of it, if it has a scale per channel
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
