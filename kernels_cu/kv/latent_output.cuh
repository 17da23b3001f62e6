// What becomes of O of some heads of a sequence at the end of a CTA's share of its tokens: the
// result, or a part of it (latent_merge.cuh). kv/partials.cuh has the same for other caches.
#pragma once
#include "kv/latent_group_values.cuh"
#include "kv/latent_merge.cuh"
#include "kv/latent_values.cuh"

// What is said of a row besides O.
template <LatentDecodeSpec S>
__device__ __forceinline__ void store_latent_numbers(const DecodeParams& p, const HeadShare& head,
                                                     const RowPlace& place, int row,
                                                     bool sees_none, float reference,
                                                     float row_sum) {
  if (head.is_whole) {
    const float lse = sees_none ? -kInf : row_lse(reference, row_sum, 0.0f);
    store_lse<kLatentShare<S>>(p, head.at.sequence, place, lse);
  } else {
    Partial<kLatentShare<S>>& partial = partial_of<kLatentShare<S>>(p, blockIdx.x, head.is_first);
    partial.reference[row] = reference;
    partial.row_sum[row] = row_sum;
  }
}

template <LatentDecodeSpec S>
__device__ __forceinline__ float latent_row_sum(const LatentStorage<S>& storage, int row) {
  float row_sum = 0.0f;
#pragma unroll
  for (const float x : storage.sums[row]) row_sum += x;
  return row_sum;
}

template <LatentDecodeSpec S>
  requires(!S.warpgroups)
__device__ __forceinline__ void store_latent_rows(const DecodeParams& p,
                                                  LatentStorage<S>& storage,
                                                  const LatentSoftmax<S>& softmax,
                                                  const typename LatentShape<S>::Output& o,
                                                  const HeadShare& head,
                                                  const LatentWarp<S>& warp) {
  using H = LatentShape<S>;
  softmax.share_sums(storage, warp);
  H::for_rows([&](int tile, int half) {
    const int row = warp.row(tile, half);
    const RowPlace place = RowPlace::of<kLatentShare<S>>(p, head.at.head, row);
    if (!place.exists) return;
    const float row_sum = latent_row_sum<S>(storage, row);
    const bool sees_none = softmax.sees[tile][half] == 0;
    const float factor = sees_none ? 0.0f : 1.0f / row_sum;
    Partial<kLatentShare<S>>& partial = partial_of<kLatentShare<S>>(p, blockIdx.x, head.is_first);
#pragma unroll
    for (int i = 0; i < H::kChunks; ++i) {
      const auto& x = o[tile][i];
      const int channel = 16 * (warp.share * H::kChunks + i) + warp.lane % 4 * 4;
      const float4 four = {x[0][2 * half], x[1][2 * half], x[0][2 * half + 1], x[1][2 * half + 1]};
      if (head.is_whole) {
        store_latent_four<kLatentShare<S>>(p, head.at.sequence, place, channel, four, factor);
      } else {
        *reinterpret_cast<float4*>(partial.o[row] + channel) = four;
      }
    }
    if (warp.share > 0 || warp.lane % 4 > 0) return;
    store_latent_numbers<S>(p, head, place, row, sees_none, softmax.reference[tile][half], row_sum);
  });
}

// The same of O transposed: its rows are others than those of S.
template <LatentDecodeSpec S>
  requires(S.warpgroups)
__device__ __forceinline__ void store_latent_rows(const DecodeParams& p,
                                                  LatentStorage<S>& storage,
                                                  const LatentSoftmax<S>& softmax,
                                                  const typename LatentShape<S>::Output& o,
                                                  const HeadShare& head,
                                                  const LatentWarp<S>& warp) {
  using H = LatentShape<S>;
  softmax.share_sums(storage, warp);
  H::for_rows([&](int tile, int half) {
    const int row = warp.row(tile, half);
    const RowPlace place = RowPlace::of<kLatentShare<S>>(p, head.at.head, row);
    if (!place.exists || warp.share > 0 || warp.lane % 4 > 0) return;
    store_latent_numbers<S>(p, head, place, row, softmax.sees[tile][half] == 0,
                            softmax.reference[tile][half], latent_row_sum<S>(storage, row));
  });
  const int channel = 16 * (warp.share * H::kChunks + warp.first_tile) + warp.lane / 4 * 2;
#pragma unroll
  for (int i = 0; i < S.rows / 4; ++i) {
    const int row = i / 2 * 8 + warp.lane % 4 * 2 + i % 2;
    const RowPlace place = RowPlace::of<kLatentShare<S>>(p, head.at.head, row);
    if (!place.exists) continue;
    const bool sees_none = place.template sees<kLatentShare<S>>(p, head.at.length) == 0;
    const float factor = sees_none ? 0.0f : 1.0f / latent_row_sum<S>(storage, row);
#pragma unroll
    for (int tile = 0; tile < H::kChunks / 4; ++tile) {
      const int e = i / 2 * 4 + i % 2;
      const float2 pair = {o[tile][e], o[tile][e + 2]};
      if (head.is_whole) {
        auto* to = o_address<kLatentShare<S>>(p, head.at.sequence, place);
        store_latent_pair<S.input>(to + channel + 64 * tile, pair, factor);
      } else {
        auto& part = partial_of<kLatentShare<S>>(p, blockIdx.x, head.is_first);
        *reinterpret_cast<float2*>(part.o[row] + channel + 64 * tile) = pair;
      }
    }
  }
}
