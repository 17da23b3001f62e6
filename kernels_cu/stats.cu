// What the quantizer has to know of whole channels before it starts: the mean of K or V over the
// tokens, and the smallest and largest elements of an operand whose scales are those of channels or
// heads.
//
//   stats         a CTA for each chunk of tokens of each head: those of Q, then of K, then of V
//   stats_finish  a CTA for each head that has more than one chunk
#include "quant/group_means.cuh"
#include "quant/quantize_params.cuh"
#include "quant/quantize_spec.cuh"
#include "quant/sequence_operand.cuh"

// Sum, low and high, or the sum only.
constexpr int kinds_of(bool range) { return range ? 3 : 1; }

// Results of one head, `x` being the mean, the smallest or the largest element of a channel.
__device__ __forceinline__ void store_result(const StatsOperand& operand, int head, int head_dim,
                                             int kind, int channel, float x) {
  if (channel >= head_dim) return;
  f32* to = kind == 0 ? operand.mean : kind == 1 ? operand.low : operand.high;
  to[static_cast<i64>(head) * head_dim + channel] = x;
}

// One CTA for a head.
template <StatsSpec S, bool Sample, int Kinds>
__device__ __forceinline__ void head_stats(const StatsOperand& x, int head_dim, int head,
                                           u8* smem) {
  using Joined = MeanGroups<S.input, S.head_dim, S.num_threads, Kinds>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) <= S.smem_bytes, "cuattn/specs/stats.py disagrees");
  const int count = Sample ? min_of(x.seqlen, kSample) : x.seqlen;
  const char* source = row_address<S.input>(x, head, 0);
  reinterpret_cast<Joined*>(smem)->join(
      count, x.robust,
      [&](Moments<S.input, Kinds>& moments, int group, int part) {
        Groups::template add_steps<S.aligned, Groups::kBatch, Joined::kParts>(
            moments, source, x.stride_token * bytes_of(S.input), group_start(group, count) + part,
            group_start(group + 1, count), Groups::inside(head_dim),
            [&](int i) { return Sample ? sample_token(i, x.seqlen) : static_cast<i64>(i); });
      },
      [&](int kind, int channel, float result) {
        store_result(x, head, head_dim, kind, channel, result);
      });
}

// A CTA for a chunk of a head: all of a group of tokens, or a part of it.
template <StatsSpec S, int Kinds>
__device__ __forceinline__ void chunk_stats(const StatsOperand& x, int head_dim, int cta,
                                            u8* smem) {
  using Joined = GroupMoments<S.input, S.head_dim, S.num_threads, Kinds>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) <= S.smem_bytes, "cuattn/specs/stats.py disagrees");
  const int parts = x.chunks / kMeanGroups;
  const int group = cta % x.chunks / parts;
  const int first = group_start(group, x.seqlen) + cta % parts * x.chunk;
  const int count = min_of(group_start(group + 1, x.seqlen) - first, x.chunk);
  Moments<S.input, Kinds> moments;
  Groups::template add_rows<S.aligned, Groups::kBatch>(
      moments, row_address<S.input>(x, cta / x.chunks, first),
      x.stride_token * bytes_of(S.input), count, Groups::inside(head_dim),
      [](int i) { return static_cast<i64>(i); });
  f32* partial = x.partial + static_cast<i64>(cta) * Kinds * S.head_dim;
  reinterpret_cast<Joined*>(smem)->join(moments, [&](int kind, int channel, float result) {
    partial[kind * S.head_dim + channel] = result;
  });
}

// Makes an operand that of the sequence of `head`, in as many chunks as StatsSpec of
// cuattn/specs/stats.py would choose if it knew the length: sums do not depend on other sequences.
template <Type In, int RowFloats>
__device__ __forceinline__ void narrow_chunks(StatsOperand& x, int head) {
  narrow<In>(x, head);
  const int chunks = x.chunks;
  const int of_group = ceil_div(x.seqlen, kMeanGroups);
  if (x.most == 0 || x.seqlen <= x.most) {
    x.chunks = 1;
  } else {
    x.chunks = kMeanGroups * ceil_div(of_group, x.most);
    x.chunk = ceil_div(of_group, x.chunks / kMeanGroups);
  }
  x.partial += static_cast<i64>(head) * (chunks - x.chunks) * RowFloats;
}

template <StatsSpec S, bool Sample, int Kinds>
__device__ __forceinline__ void operand_stats(const StatsOperand& x, int head_dim, int cta,
                                              u8* smem) {
  if (Sample || x.chunks == 1) {
    head_stats<S, Sample, Kinds>(x, head_dim, cta, smem);
  } else {
    chunk_stats<S, Kinds>(x, head_dim, cta, smem);
  }
}

template <StatsSpec S, int Kinds>
__device__ __forceinline__ void store_zeros(const StatsOperand& x, int head_dim, int head) {
  for (int channel = threadIdx.x; channel < head_dim; channel += S.num_threads) {
#pragma unroll
    for (int kind = 0; kind < Kinds; ++kind) store_result(x, head, head_dim, kind, channel, 0.0f);
  }
}

template <StatsSpec S, bool Sample, int Kinds>
__device__ __forceinline__ void sequence_stats(const StatsOperand& x, int head_dim, int cta,
                                               u8* smem) {
  if constexpr (S.varlen) {
    StatsOperand own = x;
    const int head = cta / x.chunks;
    narrow_chunks<S.input, Kinds * S.head_dim>(own, head);
    if (own.seqlen == 0) {
      // What is read where no key is must be a number: the mean enters log-sum-exps of -inf.
      if (cta % x.chunks == 0) store_zeros<S, Kinds>(own, head_dim, head);
    } else if (cta % x.chunks < own.chunks) {
      operand_stats<S, Sample, Kinds>(own, head_dim, head * own.chunks + cta % x.chunks, smem);
    }
  } else {
    operand_stats<S, Sample, Kinds>(x, head_dim, cta, smem);
  }
}

template <StatsSpec S>
__device__ __forceinline__ void stats(const StatsParams& p) {
  extern __shared__ __align__(16) u8 smem[];
  const int q_end = S.qk_range ? p.q.heads * p.q.chunks : 0;
  const int k_end = q_end + p.k.heads * p.k.chunks;
  const int cta = blockIdx.x;
  if (S.qk_range && cta < q_end) {
    sequence_stats<S, false, kinds_of(S.qk_range)>(p.q, p.head_dim, cta, smem);
  } else if (cta < k_end) {
    sequence_stats<S, S.k_sample, kinds_of(S.qk_range)>(p.k, p.head_dim, cta - q_end, smem);
  } else {
    sequence_stats<S, S.v_sample, kinds_of(S.v_range)>(p.v, p.head_dim, cta - k_end, smem);
  }
}

template <FinishSpec S, int Kinds>
__device__ __forceinline__ void finish_head(const StatsOperand& x, int head_dim, int head,
                                            u8* smem) {
  using Joined = MeanGroups<Type::fp32, S.head_dim, S.num_threads, Kinds>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) <= S.smem_bytes, "cuattn/specs/stats.py disagrees");
  constexpr int kChunkBytes = Kinds * S.head_dim * 4;
  const char* source = reinterpret_cast<const char*>(x.partial) +
                       static_cast<i64>(head) * x.chunks * kChunkBytes + Groups::channel() * 4;
  const int parts = x.chunks / kMeanGroups;
  reinterpret_cast<Joined*>(smem)->join(
      x.seqlen, x.robust,
      [&](Moments<Type::fp32, Kinds>& moments, int group, int part) {
#pragma unroll 4
        for (int i = part; i < parts; i += Joined::kParts) {
          const char* row = source + static_cast<i64>(group * parts + i) * kChunkBytes;
          Chunk<Type::fp32> chunk[Kinds];
#pragma unroll
          for (int kind = 0; kind < Kinds; ++kind) {
            chunk[kind].template load<true, true>(row + kind * S.head_dim * 4, true);
          }
          moments.add(chunk[0], chunk[Kinds / 2], chunk[Kinds - 1]);
        }
      },
      [&](int kind, int channel, float result) {
        store_result(x, head, head_dim, kind, channel, result);
      });
}

template <FinishSpec S, int Kinds>
__device__ __forceinline__ void finish_sequence(const StatsOperand& x, int head_dim, int head,
                                                u8* smem) {
  if constexpr (S.varlen) {
    StatsOperand own = x;
    narrow_chunks<Type::fp32, Kinds * S.head_dim>(own, head);
    if (own.chunks > 1) finish_head<S, Kinds>(own, head_dim, head, smem);
  } else {
    finish_head<S, Kinds>(x, head_dim, head, smem);
  }
}

template <FinishSpec S>
__device__ __forceinline__ void stats_finish(const StatsParams& p) {
  extern __shared__ __align__(16) u8 smem[];
  const int q_end = S.qk_range && p.q.chunks > 1 ? p.q.heads : 0;
  const int k_end = q_end + (p.k.chunks > 1 ? p.k.heads : 0);
  const int cta = blockIdx.x;
  if (S.qk_range && cta < q_end) {
    finish_sequence<S, kinds_of(S.qk_range)>(p.q, p.head_dim, cta, smem);
  } else if (cta < k_end) {
    finish_sequence<S, kinds_of(S.qk_range)>(p.k, p.head_dim, cta - q_end, smem);
  } else {
    finish_sequence<S, kinds_of(S.v_range)>(p.v, p.head_dim, cta - k_end, smem);
  }
}
