// Keys of a block of a KV cache, for the quantizer of sorted keys.
#pragma once
#include "kv/cached_block.cuh"
#include "quant/rotate_rows.cuh"
#include "quant/rows.cuh"

template <OperandsSpec S>
using KeyRows = Rows<kSortedCodes<S>, Role::key>;

// Where `RowTile` reads codes.
template <OperandsSpec S>
struct KeyCodes {
  const CachedBlock<S>& block;
  u32 fine;

  __device__ __forceinline__ uint4 read(int row, int c) const {
    return block.keys(row, KeyRows<S>::Lanes::channel(c) / 16, fine);
  }
};

// As `RowValues`. Keys are less their offset; from the first `bare` ones of the block, which have
// none, it is taken here, if there are `Bare` ones.
template <OperandsSpec S, bool Bare>
struct KeyValues {
  using T = KeyRows<S>;
  using Lanes = typename T::Lanes;
  static constexpr float unit = 1.0f;
  static constexpr int kGroups = Unit<S>::kKGroups > 1 ? Lanes::kChunks : 1;  // that a lane has
  const T& rows;
  const f32* offset;
  int bare;
  typename CachedBlock<S>::KNumbers numbers[T::kRows][kGroups];

  __device__ __forceinline__ KeyValues(const T& rows, const CachedBlock<S>& block, u32 fine,
                                       const f32* offset, int bare)
      : rows(rows), offset(offset), bare(bare) {
#pragma unroll
    for (int r = 0; r < T::kRows; ++r) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int group = Unit<S>::kKGroups > 1 ? Lanes::channel(g) / max_of(S.group, 1) : 0;
        numbers[r][g] = block.k_numbers(rows.row(r), group, fine);
      }
    }
  }

  // Calls f(chunk, element, x) for everything that the lane has of a row.
  template <class F>
  __device__ __forceinline__ void visit(int r, F f) const {
    rows.tile.visit(r, [&](int c, int i, float code) {
      float x = numbers[r][kGroups > 1 ? c : 0].value(code);
      if (Bare && rows.row(r) < bare) x = __fsub_rn(x, offset[Lanes::channel(c) + i]);
      f(c, i, x);
    });
  }
};

// What K's offset is where keys are rotated, with zeros in channels that are padding; by one warp.
template <OperandsSpec S>
__device__ __forceinline__ void turn_offset(f32* to, const f32* offset) {
  using Lanes = RowLanes<Type::fp32, S.head_dim>;
  float x[1][Lanes::kChunks][Lanes::kElements];
#pragma unroll
  for (int c = 0; c < Lanes::kChunks; ++c) {
    const bool padding = S.channels < S.head_dim && Lanes::channel(c) >= S.channels;
#pragma unroll
    for (float& element : x[0][c]) element = 0.0f;
    if (!padding) load_floats(x[0][c], offset + Lanes::channel(c));
  }
  float factor = 1.0f;
  if constexpr (S.rotate) factor = rotate_rows<Lanes>(x, rotation_block(S.head_dim));
#pragma unroll
  for (int c = 0; c < Lanes::kChunks; ++c) {
    float4* four = reinterpret_cast<float4*>(to + Lanes::channel(c));
    *four = make_float4(x[0][c][0] * factor, x[0][c][1] * factor, x[0][c][2] * factor,
                        x[0][c][3] * factor);
  }
}
