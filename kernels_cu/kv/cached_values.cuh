// Values of a block of a KV cache, for the quantizer of sorted keys: rows of tokens again.
#pragma once
#include "kv/byte_square.cuh"
#include "kv/cached_block.cuh"
#include "quant/values.cuh"

// Makes rows of tokens of what a block has by channels, each unit where it is: a warp reads all of
// one before it writes. A lane has four neighbouring channels.
template <OperandsSpec S>
__device__ __forceinline__ void turn_values(CachedBlock<S>& block, u32 fine) {
  constexpr int kFours = S.head_dim / 4;
  constexpr int kMine = ceil_div(kFours, kWarpSize);
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
  for (int unit = threadIdx.x / kWarpSize; unit < block.kUnits;
       unit += S.num_threads / kWarpSize) {
    uint4 of[kMine][4];
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const int channel = 4 * (m * kWarpSize + lane);
      if (kFours % kWarpSize && channel >= S.head_dim) continue;
#pragma unroll
      for (int c = 0; c < 4; ++c) of[m][c] = block.values(unit, channel + c, fine);
    }
    __syncwarp();
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const int channel = 4 * (m * kWarpSize + lane);
      if (kFours % kWarpSize && channel >= S.head_dim) continue;
      const auto put = [&](int word, u32 a, u32 b, u32 c, u32 d) {
        u32 slots[4];
        turn_bytes(slots, a, b, c, d);
#pragma unroll
        for (int slot = 0; slot < 4; ++slot) {
          const int token = unit * kUnitTokens + token_in_slot(4 * word + slot);
          *reinterpret_cast<u32*>(const_cast<u8*>(block.row(token)) + channel) = slots[slot];
        }
      };
      put(0, of[m][0].x, of[m][1].x, of[m][2].x, of[m][3].x);
      put(1, of[m][0].y, of[m][1].y, of[m][2].y, of[m][3].y);
      put(2, of[m][0].z, of[m][1].z, of[m][2].z, of[m][3].z);
      put(3, of[m][0].w, of[m][1].w, of[m][2].w, of[m][3].w);
    }
  }
}

// Where `RowTile` reads codes.
template <OperandsSpec S>
struct ValueCodes {
  const CachedBlock<S>& block;

  __device__ __forceinline__ uint4 read(int row, int c) const {
    using Lanes = typename Values<kSortedCodes<S>>::Lanes;
    return *reinterpret_cast<const uint4*>(block.row(row) + Lanes::channel(c));
  }
};

// As `ValueSource`.
template <OperandsSpec S>
struct CachedValues {
  using V = Values<kSortedCodes<S>>;
  const QuantizeOperand& x;
  const CachedBlock<S>& units;
  u32 fine;
  TileSource block;

  // What codes of the lane's rows stand for.
  struct Meaning {
    static constexpr int kGroups = Unit<S>::kVGroups > 1 ? V::Lanes::kChunks : 1;
    typename CachedBlock<S>::VNumbers numbers[V::kRows][kGroups];

    __device__ __forceinline__ float value(int r, int c, float code) const {
      return numbers[r][kGroups > 1 ? c : 0].value(code);
    }
  };
  template <class Order>
  __device__ __forceinline__ Meaning meaning(const Order& order) const {
    Meaning result;
#pragma unroll
    for (int r = 0; r < V::kRows; ++r) {
#pragma unroll
      for (int g = 0; g < Meaning::kGroups; ++g) {
        const int group = Unit<S>::kVGroups > 1 ? V::Lanes::channel(g) / max_of(S.group, 1) : 0;
        result.numbers[r][g] = units.v_numbers(order.offset(r), group, fine);
      }
    }
    return result;
  }

  __device__ __forceinline__ typename V::Vector vector() const { return {}; }

  template <bool Once, class Order>
  __device__ __forceinline__ void read(typename V::Tile& tile, const Order& order) const {
    tile.read(ValueCodes<S>{units}, order);
  }
};
