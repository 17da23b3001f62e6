// Values of a block of a KV cache, for the quantizer of sorted keys: rows of tokens again.
#pragma once
#include "kv/byte_square.cuh"
#include "kv/cached_block.cuh"
#include "quant/values.cuh"

template <OperandsSpec S>
using ValueRows = typename Values<kSortedCodes<S>>::Staged;

// Makes rows of what a block has by channels. A thread has four channels of a unit at a time.
template <OperandsSpec S>
__device__ __forceinline__ void turn_values(ValueRows<S>& to, const CachedBlock<S>& block,
                                            u32 fine) {
  using Rows = ValueRows<S>;
  constexpr int kFours = S.head_dim / 4;
  constexpr int kAll = CachedBlock<S>::kUnits * kFours;
  static_assert(kAll % S.num_threads == 0);
#pragma unroll 1
  for (int i = threadIdx.x; i < kAll; i += S.num_threads) {
    const int unit = i / kFours;
    const int channel = i % kFours * 4;
    uint4 of[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) of[c] = block.values(unit, channel + c, fine);
    const auto put = [&](int word, u32 a, u32 b, u32 c, u32 d) {
      u32 slots[4];
      turn_bytes(slots, a, b, c, d);
#pragma unroll
      for (int slot = 0; slot < 4; ++slot) {
        const int token = unit * kUnitTokens + token_in_slot(4 * word + slot);
        const int piece = channel / 16 ^ Rows::permutation(token);
        *reinterpret_cast<u32*>(to.rows + token * Rows::kPitch + piece * 16 + channel % 16) =
            slots[slot];
      }
    };
    put(0, of[0].x, of[1].x, of[2].x, of[3].x);
    put(1, of[0].y, of[1].y, of[2].y, of[3].y);
    put(2, of[0].z, of[1].z, of[2].z, of[3].z);
    put(3, of[0].w, of[1].w, of[2].w, of[3].w);
  }
}

// As `ValueSource`.
template <OperandsSpec S>
struct CachedValues {
  using V = Values<kSortedCodes<S>>;
  const QuantizeOperand& x;
  const CachedBlock<S>& units;
  const ValueRows<S>& rows;
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
    tile.read(rows, order);
  }
};
