// Rows of a unit in float32, less an offset and rotated: for codes that are made of these.
#pragma once
#include "kv/unit_rows.cuh"
#include "quant/rotate_rows.cuh"

// Looks like UnitRows to those who make codes.
template <class Of>
struct FloatRows {
  using Lanes = typename Of::Lanes;
  using Vector = typename Of::Vector;
  static constexpr bool kSingle = Of::kSingle;
  static constexpr int kRows = Of::kRows;

  struct Tile {
    float x[kRows][Lanes::kChunks][Lanes::kElements];

    template <class F>
    __device__ __forceinline__ void visit(int r, F f) const {
      visit<Lanes::kChunks>(r, 0, f);
    }
    template <int Chunks, class F>
    __device__ __forceinline__ void visit(int r, int first, F f) const {
#pragma unroll
      for (int c = first; c < first + Chunks; ++c) {
#pragma unroll
        for (int i = 0; i < Lanes::kElements; ++i) f(c, i, x[r][c][i]);
      }
    }
    // The vector has been taken already.
    template <bool Smooth, int Chunks>
    __device__ __forceinline__ float amax(int r, const Vector&, int first) const {
      static_assert(!Smooth);
      float result = 0.0f;
      visit<Chunks>(r, first,
                    [&](int, int, float y) { result = ptx::max_nan(result, fabsf(y)); });
      return result;
    }
  };

  int first_slot;
  int first_token;
  Tile tile;

  __device__ __forceinline__ FloatRows(const Of& of, const Vector& vector)
      : first_slot(of.first_slot), first_token(of.first_token) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      of.tile.visit(r, [&](int c, int i, float y) { tile.x[r][c][i] = y - vector.at[c][i]; });
    }
  }

  // Makes elements f(r, channel, x).
  template <class F>
  __device__ __forceinline__ void change(F f) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
        for (int i = 0; i < Lanes::kElements; ++i) {
          tile.x[r][c][i] = f(r, Lanes::channel(c) + i, tile.x[r][c][i]);
        }
      }
    }
  }

  __device__ __forceinline__ void subtract(const Vector& vector) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
        for (int i = 0; i < Lanes::kElements; ++i) tile.x[r][c][i] -= vector.at[c][i];
      }
    }
  }

  template <int HeadDim>
  __device__ __forceinline__ void rotate() {
    const float factor = rotate_rows<Lanes>(tile.x, rotation_block(HeadDim));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
#pragma unroll
        for (float& y : tile.x[r][c]) y *= factor;
      }
    }
  }

  __device__ __forceinline__ int slot(int r) const { return first_slot + r; }
  __device__ __forceinline__ int token(int r) const { return first_token + token_in_slot(r); }
};
