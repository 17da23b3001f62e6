// Operands that stay row by row: codes of Q and K, and values of any that only change their type.
#pragma once
#include "quant/block_amax.cuh"
#include "quant/channel_scale.cuh"
#include "quant/lse_shift.cuh"
#include "quant/per_row.cuh"
#include "quant/row_tile.cuh"
#include "quant/scale.cuh"
#include "quant/storage.cuh"
#include "quant/store.cuh"

enum class Role { query, key, value };

template <QuantizeSpec S, Role R>
struct Rows {
  static constexpr Type kOut = R == Role::query ? S.q : R == Role::key ? S.k : S.v;
  static constexpr int kTokens = R == Role::query ? S.q_tile : R == Role::key ? S.k_tile : S.v_tile;
  static constexpr bool kHeadScale = R != Role::value && S.qk_per_tensor;
  static constexpr bool kBlockScale =
      R == Role::key && is_code(kOut) && S.k_scope == Scope::block && !kHeadScale;

  using Lanes = RowLanes<S.input, S.head_dim>;
  static constexpr int kRows = kTokens * Lanes::kLanes / S.num_threads;
  static constexpr int kWarpTokens = kRows * Lanes::kWarpRows;
  static_assert(kRows * S.num_threads == kTokens * Lanes::kLanes, "quantize_spec.py: tiles");
  static_assert(!kBlockScale || (kTokens % S.k_block == 0 && S.k_block % kWarpTokens == 0));

  using Tile = RowTile<S.input, S.head_dim, kRows>;
  using Vector = typename Tile::Vector;

  // A warp's rows are consecutive, so they belong to one block of keys.
  struct Order {
    int first = static_cast<int>(threadIdx.x) / kWarpSize * kWarpTokens +
                Lanes::group() % Lanes::kWarpRows;
    static __device__ constexpr int offset(int r) { return r * Lanes::kWarpRows; }
  };

  TileSource from;
  Order order;
  Tile tile;
  i64 first_row;  // of the tile, in all rows of the operand
  char* out;

  __device__ __forceinline__ Rows(const QuantizeOperand& x, int cta, int head_dim)
      : from(tile_source<S.input>(x, cta, kTokens)),
        first_row(static_cast<i64>(from.head) * x.seqlen + from.first),
        out(static_cast<char*>(x.out) + first_row * (S.head_dim * bytes_of(kOut))) {
    tile.template load<S.aligned>(from, order, head_dim);
  }

  // The lane's r-th row, in the tile.
  __device__ __forceinline__ int row(int r) const { return order.first + order.offset(r); }
  __device__ __forceinline__ bool exists(int r) const {
    return order.offset(r) < from.count - order.first;
  }

  // Stores what convert(r) makes of the lane's r-th row: a float for each of its elements.
  template <class Convert>
  __device__ __forceinline__ void store(Convert convert) {
    char* first = out + order.first * S.head_dim * bytes_of(kOut);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float x[Lanes::kChunks][Lanes::kElements];
      convert(r, x);
      if (!exists(r)) continue;
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        char* to = first + (order.offset(r) * S.head_dim + Lanes::channel(c)) * bytes_of(kOut);
        if constexpr (is_code(kOut)) {
          store_codes<kOut>(to, x[c]);
        } else {
          store_values<kOut>(to, x[c]);
        }
      }
    }
  }
};

template <QuantizeSpec S, Role R>
__device__ __forceinline__ void cast_rows(const QuantizeParams& p, const QuantizeOperand& x,
                                          int cta) {
  Rows<S, R> rows(x, cta, p.head_dim);
  rows.store([&](int r, auto& value) {
    rows.tile.visit(r, [&](int c, int i, float element) { value[c][i] = element; });
  });
}

// The scale of a head, for each of the tile's tokens or blocks of keys; what makes codes of it.
template <QuantizeSpec S, Role R>
__device__ __forceinline__ float prepare_head(const Rows<S, R>& rows, const QuantizeOperand& x,
                                              int head_dim, QuantizeStorage<S>& storage) {
  using T = Rows<S, R>;
  const float amax = head_amax<S>(channel_amax(x, rows.from.head, head_dim, 0.0f), storage);
  constexpr int kStep = R == Role::key ? S.k_block : 1;  // tokens of a scale
  const i64 first_scale = static_cast<i64>(rows.from.head) * ceil_div(x.seqlen, kStep);
  for (int i = threadIdx.x; i < min_of(T::kTokens, rows.from.count); i += S.num_threads) {
    const int token = rows.from.first + i;
    if (token % kStep == 0) x.scale[first_scale + token / kStep] = scale_of<T::kOut>(amax);
  }
  return code_factor<T::kOut>(amax);
}

template <QuantizeSpec S, Role R>
__device__ __forceinline__ void quantize_rows(const QuantizeParams& p, const QuantizeOperand& x,
                                              int cta, QuantizeStorage<S>& storage) {
  using T = Rows<S, R>;
  constexpr bool kSmooth = R == Role::key && S.k_smooth;
  T rows(x, cta, p.head_dim);
  typename T::Vector vector;
  if constexpr (kSmooth) vector.load(x.vector, rows.from.head, p.head_dim);
  if constexpr (R == Role::query && S.k_smooth) {
    if (p.lse_shift) store_lse_shift(rows, p);
  }

  float amax[T::kRows];
  if constexpr (!T::kHeadScale) {
#pragma unroll
    for (int r = 0; r < T::kRows; ++r) amax[r] = rows.tile.template amax<kSmooth>(r, vector);
  }
  float factor[T::kRows];
  if constexpr (T::kHeadScale || T::kBlockScale) {
    float common;
    if constexpr (T::kHeadScale) {
      common = prepare_head<S, R>(rows, x, p.head_dim, storage);
    } else {
      common = code_factor<T::kOut>(block_amax(amax, rows, x, storage));
    }
#pragma unroll
    for (float& f : factor) f = common;
  } else {
    const PerRow<T::Lanes::kLanes, T::kRows> largest(amax, ptx::max_nan);
    // Attention reads K's scales by whole blocks.
    const i64 pitch = R == Role::key ? ceil_div(x.seqlen, kTokenPad) * kTokenPad : x.seqlen;
    largest.for_each([&](int r, float a) {
      const int token = rows.from.first + rows.row(r);
      const int at = R == Role::key ? slot_of(token) : token;
      if (token < pitch) x.scale[rows.from.head * pitch + at] = scale_of<T::kOut>(a);
    });
    largest.share(factor, code_factor<T::kOut>);
  }

  if constexpr (kSmooth) rows.tile.disguise(p.head_dim);
  rows.store([&](int r, auto& code) {
    rows.tile.visit(r, [&](int c, int i, float element) {
      if constexpr (kSmooth) element -= vector.at[c][i];
      code[c][i] = element * factor[r];
    });
  });
}
