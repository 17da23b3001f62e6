// Quantizes new tokens into the units of a latent cache, a warp each.
#include "kv/latent_unit.cuh"

template <LatentAppendSpec S>
__device__ __forceinline__ void append_latent(const AppendParams& p) {
  using Scale = Scaling<Type::int8, 8>;
  constexpr int kTokens = S.num_threads / kWarpSize;  // of a CTA
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int pieces = ceil_div(p.seqlen, kTokens);
  const int sequence = blockIdx.x / pieces;
  const int row = blockIdx.x % pieces * kTokens + warp;
  const int length = p.store.lengths[sequence];
  const int count = min_of(count_of(p, sequence), p.seqlen);
  AppendEnd append_end(p);
  const bool refused = __syncthreads_or(lacks_room<S.num_threads>(p));
  const bool ends = warp == kTokens - 1;
  if (ends) append_end.arrive(p);

  if (!refused && row < count) {
    const auto row_of = [&](const void* x, i64 batch, i64 token) {
      return static_cast<const char*>(x) + (sequence * batch + row * token) * bytes_of(S.input);
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
