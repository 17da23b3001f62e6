// Codes of V: transposed, tokens permuted, so that the tensor cores read channels along tokens.
#pragma once
#include "quant/channel_scale.cuh"
#include "quant/per_row.cuh"
#include "quant/row_tile.cuh"
#include "quant/scale.cuh"
#include "quant/storage.cuh"

template <QuantizeSpec S>
struct Values {
  using Lanes = RowLanes<S.input, S.head_dim>;
  static constexpr bool kTokenScale = S.v_scope == Scope::token;
  static constexpr int kRows = Lanes::kRows;
  static constexpr int kQuads = kRows / 4;  // words of a channel that a lane's rows make
  static constexpr int kPassWords = S.num_threads / Lanes::kLanes * kQuads;
  // Rows are read in passes, because 128 tokens may be more than registers hold.
  static constexpr int kPasses = S.v_tile / 4 / kPassWords;
  static_assert(kPasses * kPassWords * 4 == S.v_tile, "quantize_spec.py: v_tile");
  using Tile = RowTile<S.input, S.head_dim, kRows>;
  using Vector = typename Tile::Vector;

  // Every four rows of a lane are the four tokens of one word.
  struct Order {
    int first_word;
    int first = token_of(first_word, 0);
    static __device__ constexpr int offset(int r) { return token_of(r / 4, r % 4); }
  };
};

// Codes of the lane's rows, put where the channels' rows are collected. factor(r, c, i) makes the
// code of row r's element.
template <QuantizeSpec S, class Factor>
__device__ __forceinline__ void put_codes(TransposedTile<S>& to,
                                          const typename Values<S>::Tile& tile,
                                          const typename Values<S>::Order& order, int count,
                                          const typename Values<S>::Vector& vector,
                                          Factor factor) {
  using V = Values<S>;
  constexpr int kPerWord = Chunk<S.input>::kPerWord;
  // Tokens past the end are zeros, but not after smoothing: their codes are cleared.
  u32 exists[V::kQuads] = {};
#pragma unroll
  for (int r = 0; r < V::kRows; ++r) {
    if (order.offset(r) < count - order.first) exists[r / 4] |= 0xffu << (8 * (r % 4));
  }
#pragma unroll
  for (int c = 0; c < V::Lanes::kChunks; ++c) {
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
            x[slot][i] *= factor(r, c, element);
          }
        }
#pragma unroll
        for (int i = 0; i < kPerWord; ++i) {
          packed[i][quad] =
              pack_codes<S.v>(x[0][i], x[1][i], x[2][i], x[3][i]) & exists[quad];
        }
      }
#pragma unroll
      for (int i = 0; i < kPerWord; ++i) {
        to.put(V::Lanes::channel(c) + w * kPerWord + i, order.first_word, packed[i]);
      }
    }
  }
}

template <QuantizeSpec S>
__device__ __forceinline__ void quantize_values(const QuantizeParams& p, int cta,
                                                QuantizeStorage<S>& storage) {
  using V = Values<S>;
  using Lanes = typename V::Lanes;
  const QuantizeOperand& x = p.v;
  const TileSource from = tile_source<S.input>(x, cta, S.v_tile);
  const i64 blocks = ceil_div(x.seqlen, kTokenPad);
  typename V::Vector vector;
  if constexpr (V::kTokenScale && S.v_smooth) vector.load(x.vector, from.head, p.head_dim);

#pragma unroll 1
  for (int pass = 0; pass < V::kPasses; ++pass) {
    const typename V::Order order{pass * V::kPassWords + Lanes::group() * V::kQuads};
    typename V::Tile tile;
    tile.template load<S.aligned>(from, order, p.head_dim);
    if constexpr (V::kTokenScale) {
      float amax[V::kRows];
#pragma unroll
      for (int r = 0; r < V::kRows; ++r) amax[r] = tile.template amax<S.v_smooth>(r, vector);
      const PerRow<Lanes::kLanes, V::kRows> largest(amax, ptx::max_nan);
      largest.for_each([&](int r, float a) {
        const int token = from.first + order.first + order.offset(r);
        if (token >= blocks * kTokenPad) return;
        const i64 block = from.head * blocks + token / kTokenPad;
        f32* to = x.scale + block * 3 * kTokenPad + slot_of(token % kTokenPad);
        const float scale = scale_of<S.v>(a);
        to[0] = scale;
        to[kTokenPad] = log2f(scale) + kLog2Bias;
        // NaN reaches the rows that see the token through the logarithm; the inverse must not carry
        // it to those that do not, whose probability of 0 it multiplies.
        to[2 * kTokenPad] = scale == scale ? __fdiv_rn(1.0f, scale) : 0.0f;
      });
      float factor[V::kRows];
      largest.share(factor, code_factor<S.v>);
      if constexpr (S.v_smooth) tile.disguise(p.head_dim);
      put_codes<S>(storage.codes, tile, order, from.count, vector,
                   [&](int r, int, int) { return factor[r]; });
    } else {
      if (pass == 0) prepare_channels(p, from, storage);  // while the first loads are under way
      typename V::Vector channel_factor;
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        load_floats(vector.at[c], storage.vector + Lanes::channel(c));
        load_floats(channel_factor.at[c], storage.factor + Lanes::channel(c));
      }
      put_codes<S>(storage.codes, tile, order, from.count, vector,
                   [&](int, int c, int i) { return channel_factor.at[c][i]; });
    }
  }
  __syncthreads();

  constexpr int kColumns = TransposedTile<S>::kColumns;
  constexpr int kChannels = S.num_threads / kColumns;  // that are written at a time
  static_assert(S.num_threads % kColumns == 0 && S.head_dim % kChannels == 0);
  const int column = threadIdx.x % kColumns;
  const int first_channel = threadIdx.x / kColumns;
  const int token = from.first + 16 * column;
  if (token < blocks * kTokenPad) {
    const i64 block = from.head * blocks + token / kTokenPad;
    char* out = static_cast<char*>(x.out) + token % kTokenPad +
                (block * S.head_dim + first_channel) * kTokenPad;
#pragma unroll
    for (int i = 0; i < S.head_dim; i += kChannels) {
      *reinterpret_cast<uint4*>(out + i * kTokenPad) =
          storage.codes.get(first_channel + i, column);
    }
  }
}
