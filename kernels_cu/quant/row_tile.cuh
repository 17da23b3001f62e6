// Rows of one operand in registers: all their loads are under way before the first is used.
#pragma once
#include "numeric.cuh"
#include "ptx/reduce.cuh"
#include "quant/chunk.cuh"
#include "quant/quantize_spec.cuh"
#include "quant/row_lanes.cuh"
#include "quant/tiles.cuh"

// What a lane needs of a vector over the channels of each head.
template <class Lanes>
struct LaneVector {
  float at[Lanes::kChunks][Lanes::kElements] = {};

  // From shared memory, with its padding.
  __device__ __forceinline__ void read(const f32* vector) {
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) load_floats(at[c], vector + Lanes::channel(c));
  }

  // Stays zero in the padding.
  __device__ __forceinline__ void load(const f32* vectors, int head, int head_dim) {
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
      const int channel = Lanes::channel(c);
      if (channel < head_dim) {
        load_floats(at[c], vectors + static_cast<i64>(head) * head_dim + channel);
      }
    }
  }
};

template <Type In, int HeadDim, int Rows, class RowsLanes = RowLanes<In, HeadDim>>
struct RowTile {
  using Lanes = RowsLanes;
  using Vector = LaneVector<Lanes>;
  Chunk<In> chunk[Rows][Lanes::kChunks];

  // The lane's r-th row lies at order.first + order.offset(r) of the tile. `Once` as in `Chunk`.
  template <bool Aligned, bool Once = true, class Order>
  __device__ __forceinline__ void load(const TileSource& from, Order order, int head_dim) {
    // Chunks lie at constants from here.
    const char* first = from.x + order.first * from.stride_token +
                        Lanes::first_channel(Lanes::lane()) * bytes_of(In);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const char* row = first + order.offset(r) * from.stride_token;
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        const int channel = Lanes::channel(c);
        chunk[r][c].template load<Aligned, Once>(
            row + Lanes::channel_offset(c) * bytes_of(In),
            order.offset(r) < from.count - order.first && channel < head_dim);
      }
    }
  }

  // The same from where `StagedRows` has them.
  template <class Staged, class Order>
  __device__ __forceinline__ void read(const Staged& from, Order order) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        const uint4 words = from.read(order.first + order.offset(r), c);
        chunk[r][c].word[0] = words.x;
        chunk[r][c].word[1] = words.y;
        chunk[r][c].word[2] = words.z;
        chunk[r][c].word[3] = words.w;
      }
    }
  }

  // Largest magnitude of what the lane has of a row, less the vector if there is one: of `Chunks`
  // chunks from one on.
  template <bool Smooth, int Chunks = Lanes::kChunks>
  __device__ __forceinline__ float amax(int r, const Vector& vector, int first = 0) const {
    float result = 0.0f;
    if constexpr (Smooth) {
      visit<Chunks>(r, first, [&](int c, int i, float x) {
        result = ptx::max_nan(result, fabsf(x - vector.at[c][i]));
      });
    } else {
      u32 word = 0;
#pragma unroll
      for (int c = 0; c < Chunks; ++c) word = chunk[r][first + c].amax(word);
      Chunk<In> largest;
      largest.word[0] = word;
      float x[Chunk<In>::kPerWord];
      largest.widen(x, 0);
#pragma unroll
      for (const float half : x) result = ptx::max_nan(result, half);
    }
    return result;
  }

  // Hides from the compiler that the tile is what it was, by the remainder of a multiple of 8. From
  // taking the maximum to making codes it would else keep the differences from the vector in
  // registers, twice as many as the tile has, rather than compute them twice.
  __device__ __forceinline__ void disguise(int head_dim) {
    if constexpr (bytes_of(In) == 2) {
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
#pragma unroll
        for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
          for (u32& word : chunk[r][c].word) word ^= head_dim % 8u;
        }
      }
    }
  }

  // Calls f(chunk, element, x) for everything that the lane has of a row.
  template <class F>
  __device__ __forceinline__ void visit(int r, F f) const {
    visit<Lanes::kChunks>(r, 0, f);
  }

  // The same of some chunks.
  template <int Chunks, class F>
  __device__ __forceinline__ void visit(int r, int first, F f) const {
    constexpr int kPerWord = Chunk<In>::kPerWord;
#pragma unroll
    for (int c = first; c < first + Chunks; ++c) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float x[kPerWord];
        chunk[r][c].widen(x, w);
#pragma unroll
        for (int i = 0; i < kPerWord; ++i) f(c, w * kPerWord + i, x[i]);
      }
    }
  }
};
