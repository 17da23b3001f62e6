// V rotated along its channels, in float32, for the quantizer to read. A CTA owns a tile of tokens
// of one head.
#include "quant/rotate_params.cuh"
#include "quant/rotate_rows.cuh"
#include "quant/row_tile.cuh"
#include "quant/sequence_operand.cuh"

template <RotateSpec S>
__device__ __forceinline__ void rotate_tile(const RotateParams& p) {
  using Lanes = RowLanes<S.input, S.head_dim>;
  constexpr int kAtATime = S.num_threads / Lanes::kLanes;
  constexpr int kRows = S.tile / kAtATime;
  static_assert(kRows * kAtATime == S.tile, "cuattn/specs/rotate.py disagrees");
  struct Order {
    int first = Lanes::group();
    static __device__ constexpr int offset(int r) { return r * kAtATime; }
  };
  const int head = blockIdx.x / p.tiles;
  const int first = blockIdx.x % p.tiles * S.tile;
  const TileSource from = {row_address<S.input>(p, head, first),
                           p.stride_token * bytes_of(S.input), head, first, p.seqlen - first};
  const Order order;
  RowTile<S.input, S.head_dim, kRows> tile;
  tile.template load<S.aligned>(from, order, p.head_dim);
  LaneVector<Lanes> vector;
  if (p.vector) vector.load(p.vector, head, p.head_dim);

  float x[kRows][Lanes::kChunks][Lanes::kElements];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    tile.visit(r, [&](int c, int i, float element) { x[r][c][i] = element - vector.at[c][i]; });
  }
  const float factor = rotate_rows<Lanes>(x, rotation_block(p.head_dim));
  const int pitch = S.varlen ? p.total : p.seqlen;
  f32* out = p.out + (static_cast<i64>(head) * pitch + first + order.first) * p.head_dim;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (order.offset(r) >= from.count - order.first) continue;
#pragma unroll
    for (int c = 0; c < Lanes::kChunks; ++c) {
      const int channel = Lanes::channel(c);
      if (channel >= p.head_dim) continue;
#pragma unroll
      for (int i = 0; i < Lanes::kElements; i += 4) {
        *reinterpret_cast<float4*>(out + order.offset(r) * p.head_dim + channel + i) =
            make_float4(factor * x[r][c][i], factor * x[r][c][i + 1], factor * x[r][c][i + 2],
                        factor * x[r][c][i + 3]);
      }
    }
  }
}

template <RotateSpec S>
__device__ __forceinline__ void rotate_values(const RotateParams& p) {
  if constexpr (S.varlen) {
    RotateParams own = p;
    const int head = blockIdx.x / p.tiles;
    const Sequence at = narrow<S.input>(own, head);
    if (static_cast<int>(blockIdx.x % p.tiles) * S.tile >= at.length) return;
    // Tokens stay where they are.
    if (p.cu_seqlens) {
      own.out += shift_of(at.first, head / p.num_heads, p.num_heads, p.total) * p.head_dim;
    }
    rotate_tile<S>(own);
  } else {
    rotate_tile<S>(p);
  }
}
