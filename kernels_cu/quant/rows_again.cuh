// Rows of keys that are read from memory whenever they are asked for, one at a time.
#pragma once
#include "quant/row_values.cuh"

// As `RowValues` and `RotatedValues` for rows of which a CTA has more than registers hold: the
// second time they come from the L2 cache. `T` is the `Rows` of K.
template <class T, bool Rotate>
struct RowsAgain {
  using Lanes = typename T::Lanes;
  using Row = float[1][Lanes::kChunks][Lanes::kElements];
  T& rows;
  const f32* vector;
  int head_dim;
  float unit;  // the same for all rows

  __device__ __forceinline__ RowsAgain(T& rows, const QuantizeOperand& x, int head_dim,
                                       const f32*)
      : rows(rows),
        vector(T::kSmooth ? smoothing_vector<T>(rows.from, x, head_dim) : nullptr),
        head_dim(head_dim),
        unit(1.0f) {}

  __device__ __forceinline__ void rotate(int) {
    // What it is depends on the lane and on the length of rows only.
    Row nothing = {};
    if constexpr (Rotate) unit = rotate_rows<Lanes>(nothing, rotation_block(head_dim));
  }

  template <int Chunks>
  __device__ __forceinline__ float amax(int r, int first) const {
    static_assert(Chunks == Lanes::kChunks, "of whole rows");
    float result = 0.0f;
    visit(r, [&](int, int, float x) { result = ptx::max_nan(result, fabsf(x)); });
    return result * fabsf(unit);
  }

  __device__ __forceinline__ void disguise(int) {}

  template <class F>
  __device__ __forceinline__ void visit(int r, F f) const {
    struct Order {
      int first;
      static __device__ constexpr int offset(int) { return 0; }
    };
    // Keeps the compiler from reading so far ahead that registers spill.
    __syncwarp();
    RowTile<T::kInput, T::kHeadDim, 1, Lanes> tile;
    tile.template load<T::kAligned, false>(rows.from, Order{rows.row(r)}, head_dim);
    Row x;
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
      float at[Lanes::kElements] = {};
      if (T::kSmooth && Lanes::channel(c) < head_dim) {
        load_floats(at, vector + Lanes::channel(c));
      }
      tile.template visit<1>(
          0, c, [&](int, int i, float element) { x[0][c][i] = element - at[i]; });
    }
    if constexpr (Rotate) rotate_rows<Lanes>(x, rotation_block(head_dim));
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < Lanes::kElements; ++i) f(c, i, x[0][c][i]);
    }
  }
};

// What codes of the rows of Q or K are made of.
template <QuantizeSpec S, class T>
using ValuesOf = typename Choice<
    T::kReadAgain, RowsAgain<T, S.rotate>,
    typename Choice<S.rotate, RotatedValues<T>, RowValues<T>>::type>::type;
