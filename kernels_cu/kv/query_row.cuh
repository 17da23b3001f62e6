// A row of Q in the registers of the lanes that share it: as it is, turned by its position, or
// rotated.
#pragma once
#include "kv/partition.cuh"
#include "quant/chunk.cuh"
#include "quant/rotate_rows.cuh"

template <DecodeSpec S>
struct QueryRow {
  static constexpr int kLanes = 4;
  static constexpr int kElements = 8;  // that a lane has side by side
  static constexpr int kPieces = S.head_dim / kElements / kLanes;
  static constexpr int kChunks = kElements / Chunk<S.input>::kElements;
  static constexpr int kPerWord = Chunk<S.input>::kPerWord;
  Chunk<S.input> chunk[kPieces][kChunks];

  static __device__ __forceinline__ int channel(int piece) {
    return (static_cast<int>(threadIdx.x) % kLanes + kLanes * piece) * kElements;
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
template <DecodeSpec S>
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
template <DecodeSpec S>
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

// A row in float32, rotated.
template <DecodeSpec S>
struct RotatedQuery {
  using Row = QueryRow<S>;
  float x[1][Row::kPieces][Row::kElements];

  template <class Of>
  __device__ __forceinline__ explicit RotatedQuery(const Of& row) {
#pragma unroll
    for (int i = 0; i < Row::kPieces; ++i) row.widen(x[0][i], i);
    const float factor = rotate_rows<QueryLanes<S>>(x, rotation_block(S.head_dim));
#pragma unroll
    for (int i = 0; i < Row::kPieces; ++i) {
#pragma unroll
      for (float& element : x[0][i]) element *= factor;
    }
  }

  __device__ __forceinline__ void widen(float (&to)[Row::kElements], int piece) const {
#pragma unroll
    for (int e = 0; e < Row::kElements; ++e) to[e] = x[0][piece][e];
  }
};
