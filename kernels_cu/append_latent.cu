// Quantizes new tokens into the units of a latent cache, a warp each.
#include "kv/latent_unit.cuh"

// The token of a warp, the one with number `ahead` of its sequence's new ones. Of tokens that do
// not lie end to end `count` is not said.
template <LatentAppendSpec S>
__device__ __forceinline__ OwnSpan own_token(const AppendParams& p) {
  constexpr int kTokens = S.num_threads / kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  if constexpr (S.packed) {
    const int row = blockIdx.x * kTokens + warp;
    const OwnSpan found =
        found_span<kWarpSize>(p, threadIdx.x % kWarpSize, [&](const Span& of) {
          const int ahead = row - of.first;
          return ahead < of.count ? ahead : -1;
        });
    const int lane = max_of(__ffs(__ballot_sync(0xffffffffu, found.count != 0)) - 1, 0);
    const auto of_lane = [&](int x) { return __shfl_sync(0xffffffffu, x, lane); };
    return {of_lane(found.sequence), of_lane(found.first), of_lane(found.count),
            of_lane(found.ahead)};
  } else {
    const int pieces = ceil_div(p.seqlen, kTokens);
    const int sequence = blockIdx.x / pieces;
    return {sequence, 0, 0, static_cast<int>(blockIdx.x % pieces * kTokens + warp)};
  }
}

template <LatentAppendSpec S>
__device__ __forceinline__ void append_latent(const AppendParams& p) {
  using Scale = Scaling<Type::int8, 8>;
  constexpr int kTokens = S.num_threads / kWarpSize;  // of a CTA
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const OwnSpan own = own_token<S>(p);
  const int sequence = own.sequence;
  const int row = own.ahead;
  const int length = p.store.lengths[sequence];
  const int count = S.packed ? own.count : min_of(count_of<false>(p, sequence), p.seqlen);
  AppendEnd<S.packed> append_end(p);
  const bool refused = __syncthreads_or(lacks_room<S.num_threads, S.packed>(p));
  const bool ends = warp == kTokens - 1;
  if (ends) append_end.arrive(p);

  if (!refused && row < count) {
    const auto row_of = [&](const void* x, i64 batch, i64 token) {
      const i64 element = S.packed ? (own.first + row) * token : sequence * batch + row * token;
      return static_cast<const char*>(x) + element * bytes_of(S.input);
    };
    LatentRow x;
    x.load<S.input>(row_of(p.k, p.k_stride_batch, p.k_stride_token),
                    row_of(p.v, p.v_stride_batch, p.v_stride_token), S.aligned);
    const int token = length + row;
    const int place = token % kLatentUnitTokens;
    u8* unit = latent_unit(p.store, sequence, token / kLatentUnitTokens);
    const float amax = x.amax();
    const float factor = Scale::factor(amax);
#pragma unroll
    for (int i = 0; i < LatentRow::kPieces; ++i) {
      const int channel = LatentRow::channel(i);
      u8* to = unit + channel / 16 * kLatentChunk + place * 16 + channel % 16;
      *reinterpret_cast<u32*>(to) = x.codes(i, factor);
    }
    if (LatentRow::has_rope()) {
      u8* to = unit + kRopeAt + lane / 2 * kLatentChunk + place * 16 + lane % 2 * 8;
      *reinterpret_cast<uint2*>(to) = make_uint2(x.pair<S.rope>(0), x.pair<S.rope>(1));
    }
    if (lane == 0) {
      reinterpret_cast<f32*>(unit + kLatentScaleAt)[slot_of(place)] = Scale::scale(amax);
    }
  }
  if (ends) append_end.finish(p, refused);
}
