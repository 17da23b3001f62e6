// Scales of Q and K: from the largest magnitudes of rows to what makes codes of them.
#pragma once
#include "quant/channel_scale.cuh"
#include "quant/per_row.cuh"
#include "quant/rows.cuh"
#include "quant/storage.cuh"

// Of a row of Q or K.
template <QuantizeSpec S, class T>
using RowSections = Sections<typename T::Lanes, T::kScope == Scope::group ? S.qk_group : 0>;

// Makes codes of the lane's elements.
template <QuantizeSpec S, class T>
struct Factors {
  float at[RowSections<S, T>::kCount][T::kRows];
  __device__ __forceinline__ float of(int r, int c) const {
    return at[c / RowSections<S, T>::kChunks][r];
  }
};

// Where scales of rows of Q and K lie in memory.
template <QuantizeSpec S, class T>
struct RowScales {
  using Threads = typename T::Threads;
  f32* scale;
  i64 head;
  int first;   // token of the tile
  int end;     // of the tokens that have scales
  int pitch;   // tokens of a head
  int blocks;  // of keys

  __device__ __forceinline__ RowScales(const T& rows, const QuantizeOperand& x)
      : scale(x.scale),
        head(rows.from.head),
        first(rows.from.first),
        // Attention reads K's scales by whole blocks.
        end(T::kKeys ? ceil_div(x.seqlen, kTokenPad) * kTokenPad : x.seqlen),
        pitch(T::kKeys ? blocks_of<S>(x) * kTokenPad : pitch_of<S>(x)),
        blocks(ceil_div(pitch_of<S>(x), T::kBlock)) {}

  // Of a row of the tile, in a group of channels or in all.
  __device__ __forceinline__ void store(int row, int group, float amax) const {
    constexpr int kGroups = RowSections<S, T>::kGroups ? S.head_dim / S.qk_group : 1;
    const int token = first + row;
    if (token >= end) return;
    if constexpr (T::kKeys && S.k_stored == Scope::thread) {
      if (Threads::is_first(token)) {
        scale[head * (pitch / Threads::kTokens) + Threads::of(token)] = T::Scale::scale(amax);
      }
      return;
    }
    const i64 at = T::kKeys ? (head * kGroups + group) * pitch + slot_of(token)
                            : (head * pitch + token) * kGroups + group;
    scale[at] = T::Scale::scale(amax);
  }

  // Of the rows of the warp, which have one scale; those past the end get a finite one.
  __device__ __forceinline__ void store_common(int count, float amax) const {
    const int lane = threadIdx.x % kWarpSize;
    if constexpr (T::kKeys && S.k_stored == Scope::block) {
      const int token = first + T::warp_first();
      if (lane == 0 && token % T::kBlock == 0 && T::warp_first() < count) {
        scale[head * blocks + token / T::kBlock] = T::Scale::scale(amax);
      }
    } else {
#pragma unroll
      for (int i = 0; i < T::kWarpTokens; i += kWarpSize) {
        const int row = T::warp_first() + i + lane;
        if (i + lane < T::kWarpTokens) store(row, 0, row < count ? amax : 0.0f);
      }
    }
  }
};

// The largest magnitude of the head, or of the block that the warp's rows lie in.
template <QuantizeSpec S, class T, class Values>
__device__ __forceinline__ float common_amax(const T& rows, const Values& values,
                                             const QuantizeOperand& x, int head_dim,
                                             QuantizeStorage<S>& storage) {
  if constexpr (T::kScope == Scope::tensor) {
    return head_amax<S, T::kSmooth>(x, rows.from.head, head_dim, storage);
  } else {
    static_assert(T::kTokens % T::kBlock == 0, "quantize_spec.py: tiles");
    float largest = 0.0f;
#pragma unroll
    for (int r = 0; r < T::kRows; ++r) {
      // Rows past the end are zeros, but not after smoothing.
      const float amax = values.template amax<T::Lanes::kChunks>(r, 0);
      if (rows.exists(r)) largest = ptx::max_nan(largest, amax);
    }
    return warps_amax<T::kBlock / T::kWarpTokens>(largest, storage);
  }
}

// Stores the scales of the tile's rows.
template <QuantizeSpec S, class T, class Values>
__device__ __forceinline__ Factors<S, T> scale_rows(const T& rows, const Values& values,
                                                    const QuantizeOperand& x, int head_dim,
                                                    QuantizeStorage<S>& storage) {
  using Section = RowSections<S, T>;
  const RowScales<S, T> scales(rows, x);
  Factors<S, T> factors;
  if constexpr (T::kScope == Scope::tensor || T::kScope == Scope::block) {
    const float amax = common_amax(rows, values, x, head_dim, storage);
    scales.store_common(rows.from.count, amax);
    const float common = T::Scale::factor(amax);
#pragma unroll
    for (float& factor : factors.at[0]) factor = common;
    return factors;
  }
#pragma unroll
  for (int s = 0; s < Section::kCount; ++s) {
    float amax[T::kRows];
#pragma unroll
    for (int r = 0; r < T::kRows; ++r) {
      amax[r] = values.template amax<Section::kChunks>(r, s * Section::kChunks);
    }
    PerRow<Section::kLanes, T::kRows> largest(amax, ptx::max_nan);
    if constexpr (T::kScope == Scope::thread) join_threads(largest, rows, storage);
    const int group = Section::group(s);
    largest.for_each([&](int r, float a) { scales.store(rows.row(r), group, a); });
    largest.share(factors.at[s], T::Scale::factor);
  }
  return factors;
}
