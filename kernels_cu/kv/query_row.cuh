// A row of Q in the registers of the lanes that share it: as it is, turned by its position, or
// rotated.
#pragma once
#include "ptx/reduce.cuh"
#include "quant/chunk.cuh"
#include "quant/rotate_rows.cuh"

// S is the spec of any kernel that makes codes of queries to a cache.
template <auto S>
struct QueryRow {
  static constexpr int kElements = 8;  // that a lane has side by side
  static constexpr int kLanes = min_of(rotation_block(S.head_dim) / kElements, 16);
  static constexpr int kPieces = S.head_dim / kElements / kLanes;
  static constexpr int kChunks = kElements / Chunk<S.input>::kElements;
  static constexpr int kPerWord = Chunk<S.input>::kPerWord;
  Chunk<S.input> chunk[kPieces][kChunks];

  static __device__ __forceinline__ int channel(int piece) {
    return (static_cast<int>(threadIdx.x % kLanes) + kLanes * piece) * kElements;
  }

  // Whether a piece is of the array, and no padding.
  static __device__ __forceinline__ bool has(int piece) {
    return S.channels == S.head_dim || channel(piece) < S.channels;
  }

  template <bool Aligned>
  __device__ __forceinline__ void load(const char* from, bool valid) {
#pragma unroll
    for (int i = 0; i < kPieces * kChunks; ++i) {
      const char* address = from + channel(i / kChunks) * bytes_of(S.input) + 16 * (i % kChunks);
      chunk[i / kChunks][i % kChunks].template load<Aligned, false>(address,
                                                                    valid && has(i / kChunks));
    }
  }

  // The eight elements of a piece.
  __device__ __forceinline__ void widen(float (&x)[kElements], int piece) const {
#pragma unroll
    for (int i = 0; i < kElements / kPerWord; ++i) {
      float some[kPerWord];
      chunk[piece][i / 4].widen(some, i % 4);
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) x[i * kPerWord + k] = some[k];
    }
  }
};

// How its numbers lie, for `rotate_rows`.
template <auto S>
struct QueryLanes {
  static constexpr int kLanes = QueryRow<S>::kLanes;
  static constexpr int kElements = QueryRow<S>::kElements;
  static constexpr int kChunks = QueryRow<S>::kPieces;
  static constexpr int kRun = 1;
  static __device__ __forceinline__ int lane() { return threadIdx.x % kLanes; }
  static __host__ __device__ constexpr int first_channel(int lane) { return lane * kElements; }
  static __host__ __device__ constexpr int channel_offset(int chunk) {
    return chunk * kLanes * kElements;
  }
};

// A row in float32, of which element e of piece i is f(channel, x).
template <auto S>
struct ChangedQuery {
  using Row = QueryRow<S>;
  float x[Row::kPieces][Row::kElements];

  template <class F>
  __device__ __forceinline__ ChangedQuery(const Row& row, F f) {
#pragma unroll
    for (int i = 0; i < Row::kPieces; ++i) {
      row.widen(x[i], i);
#pragma unroll
      for (int e = 0; e < Row::kElements; ++e) x[i][e] = f(Row::channel(i) + e, x[i][e]);
    }
  }

  __device__ __forceinline__ void widen(float (&to)[Row::kElements], int piece) const {
#pragma unroll
    for (int e = 0; e < Row::kElements; ++e) to[e] = x[piece][e];
  }
};

// A row in float32, rotated but for a factor, `unit`.
template <auto S>
struct RotatedRow {
  using Row = QueryRow<S>;
  float x[1][Row::kPieces][Row::kElements];
  float unit;

  template <class Of>
  __device__ __forceinline__ explicit RotatedRow(const Of& row) {
#pragma unroll
    for (int i = 0; i < Row::kPieces; ++i) row.widen(x[0][i], i);
    unit = rotate_rows<QueryLanes<S>>(x, rotation_block(S.head_dim));
  }

  __device__ __forceinline__ void widen(float (&to)[Row::kElements], int piece) const {
#pragma unroll
    for (int e = 0; e < Row::kElements; ++e) to[e] = x[0][piece][e];
  }
};

// The same with it.
template <auto S>
struct RotatedQuery : RotatedRow<S> {
  template <class Of>
  __device__ __forceinline__ explicit RotatedQuery(const Of& row) : RotatedRow<S>(row) {
#pragma unroll
    for (int i = 0; i < QueryRow<S>::kPieces; ++i) {
#pragma unroll
      for (float& element : this->x[0][i]) element *= this->unit;
    }
  }
};

// The largest magnitude of a row.
template <auto S, class Row>
__device__ __forceinline__ float amax_of(const Row& x) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < QueryRow<S>::kPieces; ++i) {
    float eight[QueryRow<S>::kElements];
    x.widen(eight, i);
#pragma unroll
    for (const float element : eight) amax = ptx::max_nan(amax, fabsf(element));
  }
  return ptx::max_across<QueryRow<S>::kLanes>(amax);
}

// The product of a row, which is not rotated, with what smoothing takes from K, if it takes any:
// not while `begun` is false, for which loads do not wait.
template <auto S, class Of>
__device__ __forceinline__ float offset_product(const Of& x, const f32* k_offset, bool begun) {
  using Row = QueryRow<S>;
  float dot = 0.0f;
#pragma unroll
  for (int i = 0; i < Row::kPieces; ++i) {
    float eight[Row::kElements];
    float offset[Row::kElements] = {};
    x.widen(eight, i);
    if (k_offset && Row::has(i)) load_floats(offset, k_offset + Row::channel(i));
#pragma unroll
    for (int e = 0; e < Row::kElements; ++e) {
      dot = fmaf(eight[e], begun ? offset[e] : 0.0f, dot);
    }
  }
  return ptx::sum_across<Row::kLanes>(dot);
}
