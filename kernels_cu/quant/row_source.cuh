// Rows of Q or K as a CTA gets them, tile by tile.
#pragma once
#include "quant/row_values.cuh"
#include "quant/rows_again.cuh"
#include "quant/storage.cuh"

// `Behind` is how many operands are fetched between two tiles of this one.
template <QuantizeSpec S, Role R, int Behind = 0>
struct RowSource {
  using T = Rows<S, R>;
  const QuantizeOperand& x;
  int head_dim;
  typename T::Staged& staged;
  f32* vector;  // of the warp, in shared memory
  TileSource tile = {};

  // Says which tile is the next. Begins to copy it, if it exists, with all that goes with it, where
  // there is something to copy it to; the one before has been taken.
  __device__ __forceinline__ void fetch(const TilePlace& at, bool exists) {
    if (exists) {
      tile = tile_source<S.input>(x, at);
      if constexpr (T::kStaged) {
        __syncwarp();
        staged.fetch(tile, head_dim);
        if constexpr (T::kSmooth) {
          fetch_vector<S.head_dim>(vector, smoothing_vector<T>(tile, x, head_dim), head_dim);
        }
      }
    }
    if constexpr (T::kStaged) ptx::cp_async_commit();
  }

  // The tile's rows in registers.
  __device__ __forceinline__ T take() {
    T rows(x, tile);
    if constexpr (T::kStaged) {
      ptx::cp_async_wait<Behind>();
      __syncwarp();
      rows.tile.read(staged, rows.order);
    } else {
      if constexpr (!T::kReadAgain) {
        rows.tile.template load<S.aligned>(tile, rows.order, head_dim);
      }
      if constexpr (T::kSharesVector) {
        share_vector<S.head_dim>(vector, smoothing_vector<T>(tile, x, head_dim), head_dim);
      }
    }
    return rows;
  }
};
