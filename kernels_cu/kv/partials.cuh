// What becomes of a head's O at the end of a CTA's share of it: the result, or a part of it in the
// workspace, to be merged with others (merge.cuh).
#pragma once
#include "attn/elements.cuh"
#include "kv/head_share.cuh"
#include "kv/row_sums.cuh"
#include "kv/sinks.cuh"

// O of a head, as a CTA leaves it: relative to 2^reference and not yet divided by the row sum.
template <DecodeSpec S>
struct Partial {
  f32 o[S.rows][S.head_dim];
  f32 reference[S.rows];
  f32 row_sum[S.rows];
  f32 lse_shift[S.rows];
};

// A share cuts two heads at most, its first and its last; a part of a batch-invariant call is one.
template <DecodeSpec S>
__device__ __forceinline__ Partial<S>& partial_of(const DecodeParams& p, int cta, bool is_first) {
  const int place = S.batch_invariant ? cta : 2 * cta + (is_first ? 0 : 1);
  return reinterpret_cast<Partial<S>*>(p.partials)[place];
}

// Takes that of a row's tokens, -inf if it sees none.
template <DecodeSpec S>
__device__ __forceinline__ void store_lse(const DecodeParams& p, int sequence,
                                          const RowPlace& place, float lse) {
  if (p.lse == nullptr) return;
  if constexpr (kHas<S.sinks>) lse = joined_lse(sink_of<S>(p, place.head), lse);
  const int num_q_heads = p.store.num_kv_heads * p.heads_per_kv;
  p.lse[(static_cast<i64>(sequence) * num_q_heads + place.head) * p.seqlen_q + place.query] = lse;
}

template <DecodeSpec S>
__device__ __forceinline__ auto* o_address(const DecodeParams& p, int sequence,
                                           const RowPlace& place) {
  using Element = typename ElementOf<S.input>::type;
  return static_cast<Element*>(p.o) + sequence * p.o_stride_batch + place.head * p.o_stride_head +
         place.query * p.o_stride_row;
}

// Whether arrays have a channel of units.
template <DecodeSpec S>
__device__ __forceinline__ bool is_channel(int channel) {
  return S.channels == S.head_dim || channel < S.channels;
}

// The log-sum-exp of a row that sees tokens.
__device__ __forceinline__ float row_lse(float reference, float row_sum, float shift) {
  return (reference + log2f(row_sum) - kLog2Of255) * kLn2 + shift;
}

// Of rows that may not see the first tokens: whether a row has seen none.
__device__ __forceinline__ bool has_seen_none(float reference, float row_sum) {
  return reference == kNoKeySeen && row_sum == 0.0f;
}

// What is added to a row's log-sum-exp: with a softcap logits have it already.
template <DecodeSpec S>
__device__ __forceinline__ float lse_shift_of(const Queries<S>& queries, int row) {
  return S.softcap ? 0.0f : queries.lse_shift[row];
}

// The rows of sequences without tokens: 0, and -inf or the sink. By one warp of every CTA.
template <DecodeSpec S>
__device__ __forceinline__ void store_empty(const DecodeParams& p) {
  const int rows = p.store.num_kv_heads * p.heads_per_kv * p.seqlen_q;
  const int lane = threadIdx.x % kWarpSize;
  for (int b = blockIdx.x; b < p.store.batch; b += gridDim.x) {
    if (p.store.lengths[b] > 0) continue;
    // By rows, of which there are less than 2^31; their elements may be more.
    for (int row = 0; row < rows; ++row) {
      const RowPlace place{row % p.seqlen_q, row / p.seqlen_q, true};
      auto* to = o_address<S>(p, b, place);
      for (int channel = 2 * lane; channel < S.channels; channel += 2 * kWarpSize) {
        store_pair<S.input>(to + channel, {0.0f, 0.0f});
      }
      if (lane == 0) store_lse<S>(p, b, place, -kInf);
    }
  }
}

// Brings O to memory: a lane's rows, the warp's channels.
template <DecodeSpec S>
__device__ __forceinline__ void store_rows(const DecodeParams& p, DecodeStorage<S>& storage,
                                           const Queries<S>& queries,
                                           const BlockSoftmax<S>& softmax,
                                           const typename DecodeShape<S>::Output& o,
                                           const HeadShare& head, int warp, int lane) {
  using H = DecodeShape<S>;
  const BlockCursor& at = head.at;
  share_sums(storage, softmax, warp, lane);
  H::for_rows([&](int tile, int half) {
    const int row = 16 * tile + 8 * half + lane / 4;
    const RowPlace place = RowPlace::of<S>(p, at.head, row);
    if (!place.exists) return;
    const float row_sum = row_sum_of(storage, row);
    const float reference = softmax.reference[tile][half];
    const bool sees_none = kHides<S> ? has_seen_none(reference, row_sum)
                                     : softmax.visible.count[tile][half] == 0;
    const auto lse_of_tokens = [&] {
      const float lse = row_lse(reference, row_sum, lse_shift_of<S>(queries, row));
      return sees_none ? -kInf : lse;
    };
    float factor = sees_none ? 0.0f : 1.0f / row_sum;
    if constexpr (kHas<S.sinks>) factor *= share_beside_sink<S>(p, place.head, lse_of_tokens());
    Partial<S>& partial = partial_of<S>(p, blockIdx.x, head.is_first);
    auto* to = o_address<S>(p, at.sequence, place);
#pragma unroll
    for (int i = 0; i < H::kDimTiles; ++i) {
      const int column = warp * H::kDimTiles + i;
      const float zero = zero_sum_of(storage, H::group_of(column), row);
      const float2 sum = {o[tile][i][2 * half] + zero, o[tile][i][2 * half + 1] + zero};
      const int channel = 8 * column + lane % 4 * 2;
      if (head.is_whole) {
        const float2 x = {sum.x * factor, sum.y * factor};
        if (is_channel<S>(channel)) {
          store_pair<S.input>(to + channel, saturated<S.input>(x, sum, {1.0f, 1.0f}));
        }
      } else {
        *reinterpret_cast<float2*>(partial.o[row] + channel) = sum;
      }
    }
    if (warp > 0 || lane % 4 > 0) return;
    if (head.is_whole) {
      store_lse<S>(p, at.sequence, place, lse_of_tokens());
    } else {
      partial.reference[row] = reference;
      partial.row_sum[row] = row_sum;
      partial.lse_shift[row] = lse_shift_of<S>(queries, row);
    }
  });
}
