// The offsets of keys: of each head of a sequence that begins, or has first tokens only, which have
// none, the mean of a sample of the tokens that are about to be appended and of earlier ones.
// reference/kv_cache.py has the same. A CTA for each head.
#include "kv/room.cuh"
#include "kv/rope.cuh"
#include "quant/moments.cuh"

// A sequence that begins with no more tokens has no offset yet.
constexpr int kFew = 16;

// Tokens at the beginning of a sequence that do not count: attention sinks.
constexpr int kSinks = 4;

// `RowGroups::add_rows` of keys that turn by their positions, in the same order. Those of the
// sequence have `before` others before them in the caller's arrays.
template <OffsetSpec S, class Token>
__device__ __forceinline__ void add_turned(const OffsetParams& p, Moments<S.input, 1>& moments,
                                           const char* first, i64 stride, int count, int batch,
                                           int before, int length, Token token) {
  using Groups = RowGroups<S.input, S.head_dim, S.num_threads>;
  constexpr int kPerWord = Chunk<S.input>::kPerWord;
  if (!Groups::inside(S.head_dim)) return;
  const int channel = Groups::channel();
#pragma unroll 1
  for (int i = Groups::group(); i < count; i += Groups::kGroups) {
    const int at = static_cast<int>(token(i));
    const char* row = first + at * stride;
    const int position = position_of(p.rope, batch, before + at, p.seqlen, length + at);
    const TokenTurn<S.input> turn(p.rope, row, position, true);
    Chunk<S.input> chunk;
    chunk.template load<S.aligned, false>(row + channel * bytes_of(S.input), true);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float x[kPerWord];
      chunk.widen(x, w);
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) {
        const int e = w * kPerWord + k;
        moments.sum[e] += turn(channel + e, x[k]);
      }
    }
  }
}

template <OffsetSpec S>
__device__ __forceinline__ void fix_offsets(const OffsetParams& p) {
  using Joined = GroupMoments<S.input, S.head_dim, S.num_threads, 1>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) == S.smem_bytes, "cuattn/kv/append_spec.py disagrees");
  extern __shared__ __align__(16) u8 smem[];
  const int head = blockIdx.x;
  const int sequence = head / p.store.num_kv_heads;
  const int kv_head = head % p.store.num_kv_heads;
  const int tokens = count_of<S.packed>(p, sequence);
  const int length = p.store.lengths[sequence];
  // What append.cu will refuse changes nothing here either.
  if (__syncthreads_or(lacks_room<S.num_threads, S.packed>(p))) return;
  if (length > kFirstTokens || tokens <= 0) return;
  if (length > 0 && (p.store.bare[sequence] == 0 || (p.fixed && p.fixed[sequence]))) return;
  if (length == 0 && kv_head == 0 && threadIdx.x == 0) {
    p.store.bare[sequence] = tokens > kFew ? 0 : kFirstTokens;
  }
  const int skipped = max_of(kSinks - length, 0);
  const int fresh = max_of(tokens - skipped, 0);

  const int batch = S.packed ? 0 : sequence;
  int before = 0;
  if constexpr (S.packed) before = span_of(p, sequence).first;
  const i64 element =
      batch * p.k_stride_batch + kv_head * p.k_stride_head + before * p.k_stride_token;
  const char* first = static_cast<const char*>(p.k) + element * bytes_of(S.input);
  const int count = min_of(fresh, kSample);
  const int earlier = max_of(length - kSinks, 0);
  Moments<S.input, 1> moments;
  const i64 stride = p.k_stride_token * bytes_of(S.input);
  const auto token = [&](int i) { return skipped + sample_token(i, fresh); };
  if constexpr (S.rope) {
    add_turned<S>(p, moments, first, stride, count, batch, before, length, token);
  } else {
    Groups::template add_rows<S.aligned, Groups::kBatch>(moments, first, stride, count,
                                                         Groups::inside(S.head_dim), token);
  }
  f32* offset = p.store.k_offset + static_cast<i64>(head) * S.head_dim;
  reinterpret_cast<Joined*>(smem)->join(
      moments, [&](int, int channel, float sum) {
        if (earlier) sum += static_cast<float>(earlier) * offset[channel];
        offset[channel] = mean_of(sum, earlier + count);
      });
}
