// Sizes that follow from a DecodeSpec, which rows a CTA has, and what it has in shared memory.
#pragma once
#include "kv/extras.cuh"
#include "kv/unit.cuh"

constexpr float kLog2E = 1.44269504088896341f;

// Tokens of a step: P is quantized against the maximum of so many.
constexpr int kKvBlock = 128;
constexpr int kBlockUnits = kKvBlock / kUnitTokens;

// Of each block every computing warp has a quarter of the tokens for its scores, and a quarter of
// the channels for P V. One more warp copies.
constexpr int kComputingWarps = 4;
constexpr int kComputingThreads = kComputingWarps * kWarpSize;
constexpr int kWarpUnits = kBlockUnits / kComputingWarps;

template <DecodeSpec S>
struct DecodeShape {
  // Rows are those of products of 16; the lower 8 of a single one may be missing.
  static constexpr int kTiles = ceil_div(static_cast<i32>(S.rows), 16);
  static constexpr int kHalves = S.rows == 8 ? 1 : 2;
  static constexpr int kSteps = S.head_dim / 32;                  // of k of Q K^T
  static constexpr int kKeyTiles = kKvBlock / kComputingWarps / 8;  // MMA columns of S
  static constexpr int kDimTiles = S.head_dim / kComputingWarps / 8;  // MMA columns of O
  static constexpr int kValueSteps = kKvBlock / 32;               // of k of P V

  // Codes of 4 bits are multiplied as the upper halves of bytes.
  static constexpr float kKUnit = S.k_bits == 4 && !S.nested ? 1.0f / 16 : 1.0f;
  static constexpr float kVUnit = S.v_bits == 4 && !S.nested ? 1.0f / 16 : 1.0f;

  // The group of an MMA column of the whole head.
  static __device__ __forceinline__ int group_of(int dim_tile) {
    return Unit<S>::kVGroups == 1 ? 0 : dim_tile * 8 / S.group;
  }

  // Calls f(tile, half) for each of the rows that a lane sees: g and g + 8 of every tile.
  template <class F>
  static __device__ __forceinline__ void for_rows(F f) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) f(tile, half);
    }
  }

  using Scores = float[kTiles][kKeyTiles][4];
  using Output = float[kTiles][kDimTiles][4];
};

// Which query of which head a row of a CTA is. Rows of a head of K and V are ordered by query, then
// by the heads of its group.
struct RowPlace {
  int query;
  int head;  // of Q
  bool exists;

  template <DecodeSpec S>
  static __device__ __forceinline__ RowPlace of(const DecodeParams& p, int head, int row) {
    const int kv_head = divided(head, p.by_row_tiles);
    const int index = (head - kv_head * p.row_tiles) * S.rows + row;
    const int query = divided(index, p.by_heads_per_kv);
    return {query, kv_head * p.heads_per_kv + (index - query * p.heads_per_kv),
            index < p.heads_per_kv * p.seqlen_q};
  }

  // The token that the row stands beside, which may be none.
  __device__ __forceinline__ int own(const DecodeParams& p, int length) const {
    return length - p.seqlen_q + query;
  }

  // Tokens that the row sees, or, of S.window, the number of the first one behind those. All of
  // them if it does not exist.
  template <DecodeSpec S>
  __device__ __forceinline__ int sees(const DecodeParams& p, int length) const {
    if constexpr (S.window) {
      return exists ? min_of(max_of(own(p, length) + p.window_right + 1, 0), length) : length;
    }
    if (!p.is_causal || !exists) return length;
    return min_of(max_of(length - p.seqlen_q + 1 + query, 0), length);
  }
};

// Tokens at the beginning of a sequence that no row sees, if the first row sees none further than
// `reach` before the end, up to 2^31.
__host__ __device__ constexpr int hidden_tokens(int length, u32 reach) {
  return static_cast<u32>(length) > reach ? length - static_cast<int>(reach) : 0;
}

// Sums of a row's codes over the groups of K's channels, which zero points of K are multiplied by.
template <int Groups, int Rows, bool Any>
struct CodeSums {
  f32 code_sum[Groups][Rows];
};
template <int Groups, int Rows>
struct CodeSums<Groups, Rows, false> {};

// The rows of one head.
template <DecodeSpec S>
struct alignas(16) Queries : RowSlopes<S.rows, kHas<S.alibi_slopes>>,
                             MaskRows<S.rows, kHas<S.attn_mask>>,
                             RowIndices<S.rows, kAsks<S>>,
                             CodeSums<Unit<S>::kKGroups, S.rows, S.nested> {
  uint4 q[DecodeShape<S>::kTiles][DecodeShape<S>::kSteps][kWarpSize];  // A operands, by lane
  // softmax_scale * log2 e * scale of Q, and what smoothing K has taken from lse; of S.softcap
  // softmax_scale / softcap * scale of Q, and what it has taken from tanh's argument
  f32 scale[S.rows];
  f32 lse_shift[S.rows];
};

// Whether lanes share what they make of scales and zero points of V (value_scales.cuh). Of several
// groups there is no room for all.
template <DecodeSpec S>
constexpr bool kSharesNumbers = Unit<S>::kVGroups == 1;

// Three numbers of each of a warp's tokens, or two if there are no zero points.
template <bool Zeros, bool Any>
struct ValueNumbers {
  static_assert(kWarpUnits * kUnitTokens == kWarpSize);
  f32 values[kComputingWarps][Zeros ? 3 : 2][kWarpSize];
};
template <bool Zeros>
struct ValueNumbers<Zeros, false> {};

template <DecodeSpec S>
struct alignas(128) DecodeStorage : ValueNumbers<Unit<S>::kHasVZero, kSharesNumbers<S>> {
  using H = DecodeShape<S>;
  static constexpr int kGroups = Unit<S>::kVGroups;
  u8 units[S.stages][kBlockUnits][Unit<S>::kBytes];
  Queries<S> queries;
  uint4 p[kGroups][H::kTiles][H::kValueSteps][kWarpSize];  // A operands, by lane
  float4 maxima[kGroups][S.rows];                          // of each warp's tokens
  float4 sums[S.rows];                                     // likewise
  u64 full[S.stages];
  u64 empty[S.stages];
  u32 arrived[2];  // parts that were there before the CTA's first and its last
};
