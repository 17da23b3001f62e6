// The offsets of keys: of each head of a sequence that begins, or has first tokens only, which have
// none, the mean of a sample of the tokens that are about to be appended and of earlier ones.
// reference/kv_cache.py has the same. A CTA for each head.
#include "kv/room.cuh"
#include "quant/moments.cuh"

// A sequence that begins with no more tokens has no offset yet.
constexpr int kFew = 16;

// Tokens at the beginning of a sequence that do not count: attention sinks.
constexpr int kSinks = 4;

template <OffsetSpec S>
__device__ __forceinline__ void fix_offsets(const OffsetParams& p) {
  using Joined = GroupMoments<S.input, S.head_dim, S.num_threads, 1>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) == S.smem_bytes, "cuattn/kv/spec.py disagrees");
  extern __shared__ __align__(16) u8 smem[];
  const int head = blockIdx.x;
  const int sequence = head / p.store.num_kv_heads;
  const int kv_head = head % p.store.num_kv_heads;
  const int tokens = count_of(p, sequence);
  const int length = p.store.lengths[sequence];
  // What append.cu will refuse changes nothing here either.
  if (__syncthreads_or(lacks_room<S.num_threads>(p))) return;
  if (length > kFirstTokens || tokens <= 0) return;
  if (length > 0 && (p.store.bare[sequence] == 0 || (p.fixed && p.fixed[sequence]))) return;
  if (length == 0 && kv_head == 0 && threadIdx.x == 0) {
    p.store.bare[sequence] = tokens > kFew ? 0 : kFirstTokens;
  }
  const int skipped = max_of(kSinks - length, 0);
  const int fresh = max_of(tokens - skipped, 0);

  const i64 element = sequence * p.k_stride_batch + kv_head * p.k_stride_head;
  const char* first = static_cast<const char*>(p.k) + element * bytes_of(S.input);
  const int count = min_of(fresh, kSample);
  const int earlier = max_of(length - kSinks, 0);
  Moments<S.input, 1> moments;
  Groups::template add_rows<S.aligned, Groups::kBatch>(
      moments, first, p.k_stride_token * bytes_of(S.input), count, Groups::inside(S.head_dim),
      [&](int i) { return skipped + sample_token(i, fresh); });
  f32* offset = p.store.k_offset + static_cast<i64>(head) * S.head_dim;
  reinterpret_cast<Joined*>(smem)->join(
      moments, [&](int, int channel, float sum) {
        if (earlier) sum += static_cast<float>(earlier) * offset[channel];
        offset[channel] = mean_of(sum, earlier + count);
      });
}
