// What codes of Q and K are made of: rows, less a vector if they are smoothed, perhaps rotated.
#pragma once
#include "quant/rotate_rows.cuh"
#include "quant/rows.cuh"

// The vector of the warp's rows.
template <class T>
__device__ __forceinline__ typename T::Vector smoothing_vector(const T& rows,
                                                               const QuantizeOperand& x,
                                                               int head_dim) {
  typename T::Vector vector;
  if constexpr (T::kSmooth && T::kKeys) vector.load(x.vector, rows.from.head, head_dim);
  if constexpr (T::kSmooth && !T::kKeys) {
    const int blocks = ceil_div(T::kVarlen ? x.max_seqlen : x.seqlen, kQBlock);
    const int block = (rows.from.first + T::warp_first()) / kQBlock;
    // Rows past the end may lie beyond the last block.
    vector.load(x.vector, rows.from.head * blocks + min_of(block, blocks - 1), head_dim);
  }
  return vector;
}

// Brings the vector of a head, with zeros in the padding, to shared memory: half of a row of it is
// too much to have in registers beside rotated rows. All threads of the CTA take part.
template <class Lanes>
__device__ __forceinline__ void share_vector(f32* shared, const f32* vectors, int head,
                                             int head_dim) {
  const f32* vector = vectors + static_cast<i64>(head) * head_dim;
  for (int i = threadIdx.x; i < Lanes::kRowChunks * Lanes::kElements; i += blockDim.x) {
    shared[i] = i < head_dim ? vector[i] : 0.0f;
  }
  __syncthreads();
}

// Made anew whenever they are asked for. `T` is the `Rows` of Q or K.
template <class T>
struct RowValues {
  using Lanes = typename T::Lanes;
  static constexpr float unit = 1.0f;
  T& rows;
  typename T::Vector vector;

  __device__ __forceinline__ RowValues(T& rows, const QuantizeOperand& x, int head_dim, f32*)
      : rows(rows), vector(smoothing_vector(rows, x, head_dim)) {}

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
// says.
template <class T>
struct RotatedValues {
  using Lanes = typename T::Lanes;
  float unit;
  float value[T::kRows][Lanes::kChunks][Lanes::kElements];

  // `shared` is what `share_vector` wants.
  __device__ __forceinline__ RotatedValues(T& rows, const QuantizeOperand& x, int head_dim,
                                           f32* shared) {
    if constexpr (T::kSmooth && T::kKeys) {
      share_vector<Lanes>(shared, x.vector, rows.from.head, head_dim);
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        float at[Lanes::kElements];
        load_floats(at, shared + Lanes::channel(c));
#pragma unroll
        for (int r = 0; r < T::kRows; ++r) {
          rows.tile.template visit<1>(
              r, c, [&](int, int i, float element) { value[r][c][i] = element - at[i]; });
        }
      }
    } else {
      const RowValues<T> before(rows, x, head_dim, shared);
#pragma unroll
      for (int r = 0; r < T::kRows; ++r) {
        before.visit(r, [&](int c, int i, float element) { value[r][c][i] = element; });
      }
    }
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
