// Operands that stay row by row: codes of Q and K, and values of any that only change their type.
#pragma once
#include "layout.cuh"
#include "ptx/registers.cuh"
#include "quant/codes.cuh"
#include "quant/row_tile.cuh"
#include "quant/sequence_operand.cuh"
#include "quant/staged_rows.cuh"
#include "quant/store.cuh"

enum class Role { query, key, value };

template <QuantizeSpec S, Role R>
struct Rows {
  static constexpr Type kOut = R == Role::query ? S.q : R == Role::key ? S.k : S.v;
  static constexpr int kHeadDim = R == Role::value ? S.head_dim_v : S.head_dim;
  static constexpr int kTokens = R == Role::query ? S.q_tile : R == Role::key ? S.k_tile : S.v_tile;
  // These are of codes of Q and K.
  static constexpr bool kKeys = R == Role::key;
  static constexpr Scope kScope = kKeys ? S.k_scope : S.q_scope;
  static constexpr bool kSmooth = kKeys ? S.k_smooth : S.q_smooth;
  static constexpr int kBlock = kKeys ? S.k_block : kQBlock;
  static constexpr bool kVarlen = S.varlen;
  using Threads = ThreadScope<kKeys>;
  using Scale = Scaling<kOut, S.qk_bits>;

  // Few lanes share a rotated row, for what they exchange takes shuffles; two of them still fill a
  // sector of memory, with 16 codes each.
  static constexpr bool kFewLanes = S.qk_lanes > 0 && is_code(kOut);
  using Lanes = RowLanes<S.input, kHeadDim, kFewLanes ? S.qk_lanes : kWarpSize,
                         kFewLanes ? 16 / Chunk<S.input>::kElements : 1>;
  static constexpr int kRows = kTokens * Lanes::kLanes / S.num_threads;
  static constexpr int kWarpTokens = kRows * Lanes::kWarpRows;
  static_assert(kRows * S.num_threads == kTokens * Lanes::kLanes, "quantize_spec.py: tiles");
  static_assert(!is_code(kOut) || kBlock % kWarpTokens == 0);

  static constexpr bool kStaged = S.staged && R != Role::value;
  using Staged = typename Choice<
      kStaged, StagedRows<S.input, kHeadDim, kTokens, S.num_threads, Lanes>,
      NoStagedRows>::type;
  // A block of keys this wide is more than registers hold: each row is read twice instead.
  static constexpr bool kReadAgain = kKeys && S.k_read_again;
  static constexpr bool kAligned = S.aligned;
  static constexpr Type kInput = S.input;
  // What smoothing subtracts is in shared memory, too.
  static constexpr bool kSharesVector = kSmooth && !kReadAgain && (kStaged || kFewLanes);

  using Tile = RowTile<S.input, kHeadDim, kRows, Lanes>;
  using Vector = typename Tile::Vector;

  // A warp's rows are consecutive, so they belong to one block.
  static __device__ __forceinline__ int warp_first(u32 thread = threadIdx.x) {
    return static_cast<int>(thread / kWarpSize) * kWarpTokens;
  }
  static __device__ __forceinline__ int lane_first(u32 thread) {
    return warp_first(thread) + Lanes::group(thread) % Lanes::kWarpRows;
  }
  struct Order {
    // The compiler would else keep from tile to tile what follows from the thread.
    int first = lane_first(ptx::opaque(threadIdx.x));
    static __device__ constexpr int offset(int r) { return r * Lanes::kWarpRows; }
  };

  TileSource from;
  Order order;
  Tile tile;
  i64 first_row;  // of the tile, in all rows of the operand
  char* out;

  __device__ __forceinline__ Rows(const QuantizeOperand& x, const TileSource& from)
      : from(from),
        first_row(static_cast<i64>(from.head) * pitch_of<S>(x) + from.first),
        out(static_cast<char*>(x.out) + first_row * row_bytes(kOut, kHeadDim)) {}

  // The lane's r-th row, in the tile.
  __device__ __forceinline__ int row(int r) const { return order.first + order.offset(r); }
  __device__ __forceinline__ bool exists(int r) const {
    return order.offset(r) < from.count - order.first;
  }

  // Stores what convert(r) makes of the lane's r-th row: a float for each of its elements.
  template <class Convert>
  __device__ __forceinline__ void store(Convert convert) {
    char* first = out + order.first * row_bytes(kOut, kHeadDim);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float x[Lanes::kChunks][Lanes::kElements];
      convert(r, x);
      if (exists(r)) store_row(first + row_bytes(kOut, order.offset(r) * kHeadDim), x);
    }
  }

  // Stores what the lane has of a row that begins at an address.
  static __device__ __forceinline__ void store_row(char* row,
                                                   float (&x)[Lanes::kChunks][Lanes::kElements]) {
    char* first = row + row_bytes(kOut, Lanes::first_channel(Lanes::lane()));
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; c += Lanes::kRun) {
      char* to = first + row_bytes(kOut, Lanes::channel_offset(c));
      auto& run = reinterpret_cast<float(&)[Lanes::kRun * Lanes::kElements]>(x[c]);
      if constexpr (is_code(kOut)) {
        store_codes<kOut>(to, run);
      } else {
        store_values<kOut>(to, run);
      }
    }
  }
};

template <QuantizeSpec S, Role R>
__device__ __forceinline__ void cast_rows(const QuantizeParams& p, const QuantizeOperand& x,
                                          int cta) {
  using T = Rows<S, R>;
  T rows(x, tile_source<S.input>(x, Tiles<T::kTokens, false>(x)[cta]));
  rows.tile.template load<S.aligned>(rows.from, rows.order,
                                     R == Role::value ? p.head_dim_v : p.head_dim);
  rows.store([&](int r, auto& value) {
    rows.tile.visit(r, [&](int c, int i, float element) { value[c][i] = element; });
  });
}
