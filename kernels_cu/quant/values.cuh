// Codes of V: transposed, tokens permuted, so that the tensor cores read channels along tokens.
#pragma once
#include "ptx/registers.cuh"
#include "quant/codes.cuh"
#include "quant/row_tile.cuh"
#include "quant/sequence_operand.cuh"
#include "quant/staged_rows.cuh"
#include "quant/transposed_tile.cuh"

template <QuantizeSpec S>
struct Values {
  using Lanes = RowLanes<S.input, S.head_dim_v>;
  static constexpr bool kTokenScale = S.v_scope == Scope::token;
  static constexpr bool kBlockScale = S.v_scope == Scope::block;
  using Scale = Scaling<S.v, S.v_bits>;
  static constexpr int kRows = kValueRows<S>;
  static constexpr int kQuads = kRows / 4;  // words of a channel that a lane's rows make
  static constexpr int kPassWords = S.num_threads / Lanes::kLanes * kQuads;
  // Rows are read in passes, because 128 tokens may be more than registers hold.
  static constexpr int kPasses = ceil_div(S.v_tile / 4, kPassWords);
  // Sorted keys that are wider than V may take more threads than V has words for.
  static constexpr bool kAllTakePart = kPasses * kPassWords * 4 == S.v_tile;
  static_assert(kAllTakePart || (S.v_scope == Scope::sorted && kPasses == 1),
                "quantize_spec.py: v_tile");
  // The same for all lanes of a warp.
  static __device__ __forceinline__ bool takes_part() {
    return kAllTakePart || first_word(0) < S.v_tile / 4;
  }
  static __device__ __forceinline__ int first_word(int pass) {
    return pass * kPassWords + Lanes::group() * kQuads;
  }
  // That have a block of tokens, in all passes.
  static constexpr int kBlockWarps = S.num_threads / kWarpSize * kTokenPad / S.v_tile;
  static_assert(kPasses == 1 || S.v_tile == kTokenPad);
  using Staged = typename Choice<
      S.v_staged, StagedRows<S.input, S.head_dim_v, S.v_tile, S.num_threads, Lanes>,
      NoStagedRows>::type;
  static_assert(!S.v_staged || (kPasses == 1 && kAllTakePart), "codes take the place of rows");
  using Tile = RowTile<S.input, S.head_dim_v, kRows>;
  using Vector = typename Tile::Vector;

  // Every four rows of a lane are the four tokens of one word.
  struct Order {
    int first_word;
    int first = token_in_slot(4 * first_word);
    static __device__ constexpr int offset(int r) { return token_in_slot(r); }
  };
};

// What remains of words of codes: tokens past the end are zeros, but not after smoothing.
template <QuantizeSpec S>
struct WordMasks {
  u32 of[Values<S>::kQuads];

  template <class Order>
  __device__ __forceinline__ WordMasks(const Order& order, int count) {
#pragma unroll
    for (u32& mask : of) mask = 0;
#pragma unroll
    for (int r = 0; r < Values<S>::kRows; ++r) {
      if (order.offset(r) < count - order.first) of[r / 4] |= 0xffu << (8 * (r % 4));
    }
  }
  // Of codes that are made by factors of 0 where there is no token.
  __device__ __forceinline__ WordMasks() {
#pragma unroll
    for (u32& mask : of) mask = ~0u;
  }
};

// Codes of the lane's rows, put where the channels' rows are collected. steps(r, c, i, x) is the
// code of row r's element x before rounding.
template <QuantizeSpec S, class Order, class Steps>
__device__ __forceinline__ void put_codes(TransposedTile<S>& to,
                                          const typename Values<S>::Tile& tile,
                                          const Order& order, const WordMasks<S>& masks,
                                          const typename Values<S>::Vector& vector,
                                          Steps steps) {
  using V = Values<S>;
  constexpr int kPerWord = Chunk<S.input>::kPerWord;
#pragma unroll
  for (int c = 0; c < V::Lanes::kChunks; ++c) {
    u32* words = to.chunk(V::Lanes::channel(c), order.first_word);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      u32 packed[kPerWord][V::kQuads];
#pragma unroll
      for (int quad = 0; quad < V::kQuads; ++quad) {
        float x[4][kPerWord];
#pragma unroll
        for (int slot = 0; slot < 4; ++slot) {
          const int r = 4 * quad + slot;
          tile.chunk[r][c].widen(x[slot], w);
#pragma unroll
          for (int i = 0; i < kPerWord; ++i) {
            const int element = w * kPerWord + i;
            if constexpr (S.v_smooth) x[slot][i] -= vector.at[c][element];
            x[slot][i] = steps(r, c, element, x[slot][i]);
          }
        }
#pragma unroll
        for (int i = 0; i < kPerWord; ++i) {
          packed[i][quad] =
              pack_codes<S.v>(x[0][i], x[1][i], x[2][i], x[3][i]) & masks.of[quad];
        }
      }
#pragma unroll
      for (int i = 0; i < kPerWord; ++i) {
        to.put(words + (w * kPerWord + i) * to.kWords, packed[i]);
      }
    }
  }
}

// Writes the rows of channels of the blocks that there are.
template <QuantizeSpec S>
__device__ __forceinline__ void store_channels(const QuantizeOperand& x, const TileSource& from,
                                               const TransposedTile<S>& codes) {
  constexpr int kColumns = TransposedTile<S>::kColumns;
  constexpr int kChannels = S.num_threads / kColumns;  // that are written at a time
  static_assert(S.num_threads % kColumns == 0);
  // The compiler would else keep from tile to tile what follows from the thread.
  const u32 thread = ptx::opaque(threadIdx.x);
  const u32 column = thread % kColumns;
  const u32 first_channel = thread / kColumns;
  const i64 blocks = blocks_of<S>(x);
  i64 block = from.first / kTokenPad;
  if constexpr (kColumns > kTokenPad / 16) {
    block += column / (kTokenPad / 16);
    if (block >= ceil_div(x.seqlen, kTokenPad)) return;
  }
  constexpr int kRowBytes = row_bytes(S.v, kTokenPad);
  char* out = static_cast<char*>(x.out) + row_bytes(S.v, column % (kTokenPad / 16) * 16) +
              ((from.head * blocks + block) * S.head_dim_v + first_channel) * kRowBytes;
#pragma unroll
  for (int i = 0; i < S.head_dim_v; i += kChannels) {
    if (S.head_dim_v % kChannels && first_channel + i >= S.head_dim_v) break;
    const uint4 sixteen = codes.get(first_channel + i, column);
    if constexpr (S.v == Type::int4) {
      u32 halves[2];
      pack_halves(halves, {sixteen.x, sixteen.y, sixteen.z, sixteen.w});
      *reinterpret_cast<uint2*>(out + i * kRowBytes) = make_uint2(halves[0], halves[1]);
    } else {
      *reinterpret_cast<uint4*>(out + i * kRowBytes) = sixteen;
    }
  }
}
