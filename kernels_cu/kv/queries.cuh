// Queries: the rows of Q of a head, quantized to 8 bits per token, as left operands of Q K^T.
#pragma once
#include "kv/block_maxima.cuh"
#include "kv/head_share.cuh"
#include "kv/query_row.cuh"
#include "kv/rope.cuh"
#include "kv/score_rules.cuh"
#include "quant/codes.cuh"

// The channels that have a sum of codes, and how lanes share one.
template <DecodeSpec S>
struct GroupSums {
  using Row = QueryRow<S>;
  static constexpr int kGroup = S.head_dim / Unit<S>::kKGroups;
  static constexpr int kPieces = max_of(kGroup / (Row::kLanes * Row::kElements), 1);
  static constexpr int kLanes = min_of(kGroup / Row::kElements, Row::kLanes);
};

// Makes codes of a row to its place among the operands; their scale is 1 / `factor`. Of nested
// codes notes their sums.
template <DecodeSpec S, class Row>
__device__ __forceinline__ void store_codes_of(Queries<S>& to, const Row& x, float factor,
                                               u32 row) {
  constexpr int kElements = QueryRow<S>::kElements;
  constexpr int kPieces = QueryRow<S>::kPieces;
  using Sums = GroupSums<S>;
  int sum[kPieces / Sums::kPieces] = {};
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    float eight[kElements];
    x.widen(eight, i);
#pragma unroll
    for (int e = 0; e < kElements; e += 4) {
      const int channel = QueryRow<S>::channel(i) + e;
      const int lane = row % 8 * 4 + channel / 4 % 4;
      const int word = channel / 16 % 2 * 2 + row / 8 % 2;
      u32* operand = reinterpret_cast<u32*>(&to.q[row / 16][channel / 32][lane]);
      const u32 codes = pack_codes<Type::int8>(eight[e] * factor, eight[e + 1] * factor,
                                               eight[e + 2] * factor, eight[e + 3] * factor);
      operand[word] = codes;
      int& of_group = sum[i / Sums::kPieces];
      if constexpr (S.nested) of_group = __dp4a(static_cast<int>(codes), 0x01010101, of_group);
    }
  }
  if constexpr (S.nested) {
#pragma unroll
    for (int i = 0; i < kPieces; i += Sums::kPieces) {
      const int of_group = sum[i / Sums::kPieces];
      const float all = ptx::sum_across<Sums::kLanes>(static_cast<float>(of_group));
      if (threadIdx.x % Sums::kLanes == 0) {
        to.code_sum[QueryRow<S>::channel(i) / Sums::kGroup][row] = all;
      }
    }
  }
}

// Quantizes a row to its place among the operands.
template <DecodeSpec S, class Of>
__device__ __forceinline__ void store_query(const DecodeParams& p, Queries<S>& to, const Of& x,
                                            const f32* k_offset, bool begun, int row) {
  using Row = QueryRow<S>;
  using Code = Scaling<Type::int8, 8>;
  const float dot = offset_product<S>(x, k_offset, begun);
  const auto store = [&](const auto& of_codes) {
    const float amax = amax_of<S>(of_codes);
    if (threadIdx.x % Row::kLanes == 0) {
      // A softcap wants both in units of itself: score_rules.cuh.
      const float scale = S.softcap ? p.softmax_scale / p.softcap : p.softmax_scale;
      to.scale[row] = Code::scale(amax) * (S.softcap ? scale : scale * kLog2E);
      to.lse_shift[row] = scale * dot;
    }
    store_codes_of<S>(to, of_codes, Code::factor(amax), row);
  };
  if constexpr (S.rotate) {
    store(RotatedQuery<S>(x));
  } else {
    store(x);
  }
}

// Makes the rows of a head, of whose sequence's tokens `bare` are bare_tokens. By the computing
// warps, who have met behind it.
template <DecodeSpec S>
__device__ __forceinline__ void make_queries(const DecodeParams& p, Queries<S>& to,
                                             const BlockCursor& at, int bare, int warp) {
  using Row = QueryRow<S>;
  constexpr int kRows = kWarpSize / Row::kLanes;  // of a warp
  const int lane = threadIdx.x % kWarpSize;
  const i64 kv_head = static_cast<i64>(at.sequence) * p.store.num_kv_heads +
                      divided(at.head, p.by_row_tiles);
  const f32* k_offset = p.store.k_offset ? p.store.k_offset + kv_head * S.channels : nullptr;
  const bool begun = at.length > bare;
#pragma unroll 1
  for (int first = warp * kRows; first < S.rows; first += kComputingWarps * kRows) {
    const int row = first + lane / Row::kLanes;
    const RowPlace of = RowPlace::of<S>(p, at.head, row);
    const i64 element = at.sequence * p.q_stride_batch + of.head * p.q_stride_head +
                        of.query * p.q_stride_row;
    const char* from = static_cast<const char*>(p.q) + element * bytes_of(S.input);
    Row x;
    if (p.q_aligned) {
      x.template load<true>(from, of.exists);
    } else {
      x.template load<false>(from, of.exists);
    }
    if constexpr (S.rope) {
      // Beside no token, and of no use, are queries before the first one.
      const int place = max_of(at.length - p.seqlen_q + of.query, 0);
      const int position =
          of.exists ? position_of(p.rope, at.sequence, of.query, p.seqlen_q, place) : 0;
      const TokenTurn<S.input> turned(p.rope, from, position, of.exists);
      store_query(p, to, ChangedQuery<S>(x, turned), k_offset, begun, row);
    } else {
      store_query(p, to, x, k_offset, begun, row);
    }
    if (lane % Row::kLanes == 0) note_extras(p, to, at, of, row);
  }
  meet();
}
