// What the quantizer has to know of whole channels before it starts: the mean of K or V over the
// tokens, and the smallest and largest elements of an operand whose scales are those of channels or
// heads.
//
//   stats         a CTA for each chunk of tokens of each head: those of Q, then of K, then of V
//   stats_finish  a CTA for each head that has more than one chunk
#include "quant/moments.cuh"
#include "quant/quantize_params.cuh"
#include "quant/quantize_spec.cuh"

// Sum, low and high, or the sum only.
constexpr int kinds_of(bool range) { return range ? 3 : 1; }

// Results of one head, `x` being the sum, the smallest or the largest element of a channel.
__device__ __forceinline__ void store_result(const StatsOperand& operand, int head, int head_dim,
                                             int tokens, int kind, int channel, float x) {
  if (channel >= head_dim) return;
  f32* to = kind == 0 ? operand.mean : kind == 1 ? operand.low : operand.high;
  to[static_cast<i64>(head) * head_dim + channel] = kind == 0 ? mean_of(x, tokens) : x;
}

template <StatsSpec S, bool Sample, int Kinds>
__device__ __forceinline__ void chunk_stats(const StatsOperand& x, int head_dim, int cta,
                                            u8* smem) {
  using Joined = GroupMoments<S.input, S.head_dim, S.num_threads, Kinds>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) <= S.smem_bytes, "cuattn/specs/stats.py disagrees");
  const int head = cta / x.chunks;
  const int first = cta % x.chunks * x.chunk;
  const int count = Sample ? min_of(x.seqlen, kSample) : min_of(x.seqlen - first, x.chunk);
  Moments<S.input, Kinds> moments;
  Groups::template add_rows<S.aligned, Groups::kBatch>(
      moments, row_address<S.input>(x, head, first), x.stride_token * bytes_of(S.input), count,
      Groups::inside(head_dim),
      [&](int i) { return Sample ? sample_token(i, x.seqlen) : static_cast<i64>(i); });
  reinterpret_cast<Joined*>(smem)->join(moments, [&](int kind, int channel, float result) {
    if (x.chunks == 1) {
      store_result(x, head, head_dim, count, kind, channel, result);
    } else {
      x.partial[(static_cast<i64>(cta) * Kinds + kind) * S.head_dim + channel] = result;
    }
  });
}

template <StatsSpec S>
__device__ __forceinline__ void stats(const StatsParams& p) {
  extern __shared__ __align__(16) u8 smem[];
  const int q_end = S.qk_range ? p.q.heads * p.q.chunks : 0;
  const int k_end = q_end + p.k.heads * p.k.chunks;
  const int cta = blockIdx.x;
  if (S.qk_range && cta < q_end) {
    chunk_stats<S, false, kinds_of(S.qk_range)>(p.q, p.head_dim, cta, smem);
  } else if (cta < k_end) {
    chunk_stats<S, S.k_sample, kinds_of(S.qk_range)>(p.k, p.head_dim, cta - q_end, smem);
  } else {
    chunk_stats<S, S.v_sample, kinds_of(S.v_range)>(p.v, p.head_dim, cta - k_end, smem);
  }
}

template <FinishSpec S, int Kinds>
__device__ __forceinline__ void finish_head(const StatsOperand& x, int head_dim, int head,
                                            u8* smem) {
  using Joined = GroupMoments<Type::fp32, S.head_dim, S.num_threads, Kinds>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) <= S.smem_bytes, "cuattn/specs/stats.py disagrees");
  constexpr int kChunkBytes = Kinds * S.head_dim * 4;
  const char* source = reinterpret_cast<const char*>(x.partial) +
                       static_cast<i64>(head) * x.chunks * kChunkBytes + Groups::channel() * 4;
  const bool inside = Groups::group() < Groups::kGroups;

  Moments<Type::fp32, Kinds> moments;
#pragma unroll 4
  for (int row = Groups::group(); row < x.chunks; row += Groups::kGroups) {
    Chunk<Type::fp32> chunk[Kinds];
#pragma unroll
    for (int kind = 0; kind < Kinds; ++kind) {
      chunk[kind].template load<true, true>(
          source + static_cast<i64>(row) * kChunkBytes + kind * S.head_dim * 4, inside);
    }
    moments.add(chunk[0], chunk[Kinds / 2], chunk[Kinds - 1]);
  }
  reinterpret_cast<Joined*>(smem)->join(moments, [&](int kind, int channel, float result) {
    store_result(x, head, head_dim, x.seqlen, kind, channel, result);
  });
}

template <FinishSpec S>
__device__ __forceinline__ void stats_finish(const StatsParams& p) {
  extern __shared__ __align__(16) u8 smem[];
  const int q_end = S.qk_range && p.q.chunks > 1 ? p.q.heads : 0;
  const int k_end = q_end + (p.k.chunks > 1 ? p.k.heads : 0);
  const int cta = blockIdx.x;
  if (S.qk_range && cta < q_end) {
    finish_head<S, kinds_of(S.qk_range)>(p.q, p.head_dim, cta, smem);
  } else if (cta < k_end) {
    finish_head<S, kinds_of(S.qk_range)>(p.k, p.head_dim, cta - q_end, smem);
  } else {
    finish_head<S, kinds_of(S.v_range)>(p.v, p.head_dim, cta - k_end, smem);
  }
}
