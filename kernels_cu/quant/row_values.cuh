// What codes of Q and K are made of: rows, less a vector if they are smoothed, perhaps rotated.
#pragma once
#include "quant/rotate_rows.cuh"
#include "quant/rows.cuh"

// The vector that smoothing subtracts from the warp's rows of a tile.
template <class T>
__device__ __forceinline__ const f32* smoothing_vector(const TileSource& from,
                                                       const QuantizeOperand& x, int head_dim) {
  i64 index = from.head;
  if constexpr (!T::kKeys) {
    const int blocks = ceil_div(T::kVarlen ? x.max_seqlen : x.seqlen, kQBlock);
    const int block = (from.first + T::warp_first()) / kQBlock;
    // Rows past the end may lie beyond the last block.
    index = index * blocks + min_of(block, blocks - 1);
  }
  return x.vector + index * head_dim;
}

// Calls f(row, chunk, element, x, y) for everything that a lane has of its rows, and for what the
// same channels of a vector are. That comes from shared memory chunk by chunk: of few lanes each
// has half of it, too much to have in registers beside rows.
template <class T, class F>
__device__ __forceinline__ void visit_beside(const T& rows, const f32* vector, F f) {
  using Lanes = typename T::Lanes;
#pragma unroll
  for (int c = 0; c < Lanes::kChunks; ++c) {
    float at[Lanes::kElements];
    load_floats(at, vector + Lanes::channel(c));
#pragma unroll
    for (int r = 0; r < T::kRows; ++r) {
      rows.tile.template visit<1>(r, c, [&](int, int i, float x) { f(r, c, i, x, at[i]); });
    }
  }
}

// Made anew whenever they are asked for. `T` is the `Rows` of Q or K.
template <class T>
struct RowValues {
  using Lanes = typename T::Lanes;
  static constexpr float unit = 1.0f;
  T& rows;
  typename T::Vector vector;

  // `shared` is the vector, if `Rows` say that it is in shared memory.
  __device__ __forceinline__ RowValues(T& rows, const QuantizeOperand& x, int head_dim,
                                       const f32* shared)
      : rows(rows) {
    if constexpr (T::kSharesVector) {
      vector.read(shared);
    } else if constexpr (T::kSmooth) {
      vector.load(smoothing_vector<T>(rows.from, x, head_dim), 0, head_dim);
    }
  }

  __device__ __forceinline__ void rotate(int) {}

  // Largest magnitude of what the lane has of a row: of `Chunks` chunks from one on.
  template <int Chunks>
  __device__ __forceinline__ float amax(int r, int first) const {
    return rows.tile.template amax<T::kSmooth, Chunks>(r, vector, first);
  }

  // Between taking maxima and making codes.
  __device__ __forceinline__ void disguise(int head_dim) {
    if constexpr (T::kSmooth) rows.tile.disguise(head_dim);
  }

  // Calls f(chunk, element, x) for everything that the lane has of a row, in multiples of the unit.
  template <class F>
  __device__ __forceinline__ void visit(int r, F f) const {
    rows.tile.visit(r, [&](int c, int i, float x) {
      if constexpr (T::kSmooth) x -= vector.at[c][i];
      f(c, i, x);
    });
  }
};

// Held in registers, for they take more than loads; in multiples of a unit, which `rotate_rows`
// says. Rows are not needed any more.
template <class T>
struct RotatedValues {
  using Lanes = typename T::Lanes;
  float unit;
  float value[T::kRows][Lanes::kChunks][Lanes::kElements];

  // Those that are yet to be rotated.
  __device__ __forceinline__ RotatedValues(T& rows, const QuantizeOperand& x, int head_dim,
                                           const f32* shared) {
    if constexpr (T::kSharesVector) {
      visit_beside(rows, shared, [&](int r, int c, int i, float element, float vector) {
        value[r][c][i] = element - vector;
      });
    } else {
      const RowValues<T> before(rows, x, head_dim, shared);
#pragma unroll
      for (int r = 0; r < T::kRows; ++r) {
        before.visit(r, [&](int c, int i, float element) { value[r][c][i] = element; });
      }
    }
  }

  __device__ __forceinline__ void rotate(int head_dim) {
    unit = rotate_rows<Lanes>(value, rotation_block(head_dim));
  }

  template <int Chunks>
  __device__ __forceinline__ float amax(int r, int first) const {
    float result = 0.0f;
    visit<Chunks>(r, first, [&](int, int, float x) { result = ptx::max_nan(result, fabsf(x)); });
    return result * fabsf(unit);
  }

  __device__ __forceinline__ void disguise(int) {}

  template <class F>
  __device__ __forceinline__ void visit(int r, F f) const {
    visit<Lanes::kChunks>(r, 0, f);
  }

  template <int Chunks, class F>
  __device__ __forceinline__ void visit(int r, int first, F f) const {
#pragma unroll
    for (int c = first; c < first + Chunks; ++c) {
#pragma unroll
      for (int i = 0; i < Lanes::kElements; ++i) f(c, i, value[r][c][i]);
    }
  }
};
