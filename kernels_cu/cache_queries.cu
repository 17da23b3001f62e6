// Many queries to a KV cache as attention takes them: codes of 8 bits of rows that turn by their
// positions first, or are padded to the channels of units. Another quantizer makes those of others
// (quantize.cu). Some lanes have a row.
#include "kv/kv_params.cuh"
#include "kv/queries_spec.cuh"
#include "kv/query_row.cuh"
#include "kv/rope.cuh"
#include "quant/store.cuh"
#include "sequences.cuh"

// Stores the codes of a row that is `unit` times x from `to` on, and its scale; the operations are
// those of quantize.cu. All lanes of the warp take part.
template <QueriesSpec S, class Of>
__device__ __forceinline__ void store_row(u8* to, f32* scale, const Of& x, float unit,
                                          bool exists) {
  using Row = QueryRow<S>;
  using Code = Scaling<Type::int8, 8>;
  const float amax = amax_of<S>(x) * fabsf(unit);
  if (!exists) return;
  if (threadIdx.x % Row::kLanes == 0) *scale = Code::scale(amax);
  const float factor = Code::factor(amax) * unit;
#pragma unroll
  for (int i = 0; i < Row::kPieces; ++i) {
    float eight[Row::kElements];
    x.widen(eight, i);
#pragma unroll
    for (float& element : eight) element *= factor;
    store_codes<Type::int8>(to + Row::channel(i), eight);
  }
}

// Stores all that is made of a row, `at` being its place among those of all heads.
template <QueriesSpec S, class Of>
__device__ __forceinline__ void store_query(const CacheQueriesParams& p, const Of& x,
                                            const f32* k_offset, i64 at, bool exists) {
  if (p.lse_shift) {
    const float dot = offset_product<S>(x, k_offset, true);
    if (exists && threadIdx.x % QueryRow<S>::kLanes == 0) p.lse_shift[at] = p.softmax_scale * dot;
  }
  u8* to = p.codes + at * S.head_dim;
  if constexpr (S.rotate) {
    const RotatedRow<S> rotated(x);
    store_row<S>(to, p.scale + at, rotated, rotated.unit, exists);
  } else {
    store_row<S>(to, p.scale + at, x, 1.0f, exists);
  }
}

template <QueriesSpec S>
__device__ __forceinline__ void store_queries(const CacheQueriesParams& p) {
  constexpr int kRows = S.num_threads / QueryRow<S>::kLanes;
  const int all_heads = static_cast<u32>(blockIdx.x) / static_cast<u32>(p.tiles);
  const int tile = static_cast<u32>(blockIdx.x) % static_cast<u32>(p.tiles);
  const int sequence = static_cast<u32>(all_heads) / static_cast<u32>(p.num_q_heads);
  const int head = static_cast<u32>(all_heads) % static_cast<u32>(p.num_q_heads);
  const Sequence own = sequence_of(p.cu_seqlens_q, nullptr, sequence, p.pitch, p.seqlen_q);
  if (tile * kRows >= own.length) return;
  const int row = tile * kRows + static_cast<int>(threadIdx.x) / QueryRow<S>::kLanes;
  const bool exists = row < own.length;

  const i64 element = (p.cu_seqlens_q ? 0 : sequence * p.q_stride_batch) +
                      head * p.q_stride_head + (own.first + row) * p.q_stride_row;
  const char* from = static_cast<const char*>(p.q) + element * bytes_of(S.input);
  QueryRow<S> x;
  if (p.q_aligned) {
    x.template load<true>(from, exists);
  } else {
    x.template load<false>(from, exists);
  }
  const i64 of_head = static_cast<i64>(p.cu_seqlens_q ? head : all_heads) * p.pitch;
  const i64 at = of_head + own.first + row;
  // Sequences have as many heads of Q, and of K: these count through the batch alike.
  const int kv_head = static_cast<u32>(all_heads) / static_cast<u32>(p.heads_per_kv);
  const f32* k_offset =
      p.k_offset ? p.k_offset + static_cast<i64>(kv_head) * S.channels : nullptr;
  if constexpr (S.rope) {
    // Beside no token, and of no use, are queries before the first one.
    const int end = __ldg((p.ends ? p.ends : p.lengths) + sequence);
    const int place = max_of(end - own.length + row, 0);
    const int in_call = p.cu_seqlens_q ? 0 : sequence;
    const int position =
        exists ? position_of(p.rope, in_call, own.first + row, p.seqlen_q, place) : 0;
    const TokenTurn<S.input> turned(p.rope, from, position, exists);
    store_query<S>(p, ChangedQuery<S>(x, turned), k_offset, at, exists);
  } else {
    store_query<S>(p, x, k_offset, at, exists);
  }
}
