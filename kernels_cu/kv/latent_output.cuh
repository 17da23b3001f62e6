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

// The same of O transposed: its rows are others than those of S, and a lane has 16 of them. What
// these have to know is put down by those of S, for code that runs once comes from memory.
template <LatentDecodeSpec S>
  requires(S.warpgroups)
__device__ __forceinline__ void store_latent_rows(const DecodeParams& p,
                                                  LatentStorage<S>& storage,
                                                  const LatentSoftmax<S>& softmax,
                                                  const typename LatentShape<S>::Output& o,
                                                  const HeadShare& head,
                                                  const LatentWarp<S>& warp) {
  using H = LatentShape<S>;
  constexpr DecodeSpec kShare = kLatentShare<S>;
  softmax.share_sums(storage, warp);
  H::for_rows([&](int tile, int half) {
    if (warp.share > 0 || warp.lane % 4 > 0) return;
    const int row = warp.row(tile, half);
    const RowPlace place = RowPlace::of<kShare>(p, head.at.head, row);
    const float row_sum = latent_row_sum<S>(storage, row);
    const bool sees_none = softmax.sees[tile][half] == 0;
    storage.shrink[row] = sees_none ? 0.0f : 1.0f / row_sum;
    storage.o_row[row] = place.exists ? o_address<kShare>(p, head.at.sequence, place) : nullptr;
    if (!place.exists) return;
    store_latent_numbers<S>(p, head, place, row, sees_none, softmax.reference[tile][half], row_sum);
  });
  meet_all();
  const int channel = 16 * (warp.share * H::kChunks + warp.first_tile) + warp.lane / 4 * 2;
  const auto for_pairs = [&](auto of_row) {
#pragma unroll
    for (int i = 0; i < S.rows / 4; ++i) {
      const auto store = of_row(i / 2 * 8 + warp.lane % 4 * 2 + i % 2);
#pragma unroll
      for (int tile = 0; tile < H::kChunks / 4; ++tile) {
        const int e = i / 2 * 4 + i % 2;
        store(channel + 64 * tile, float2{o[tile][e], o[tile][e + 2]});
      }
    }
  };
  if (head.is_whole) {
    for_pairs([&](int row) {
      auto* to = static_cast<typename ElementOf<S.input>::type*>(storage.o_row[row]);
      return [to, factor = storage.shrink[row]](int at, const float2& pair) {
        if (to) store_latent_pair<S.input>(to + at, pair, factor);
      };
    });
  } else {
    Partial<kShare>& part = partial_of<kShare>(p, blockIdx.x, head.is_first);
    for_pairs([&](int row) {
      return [to = part.o[row]](int at, const float2& pair) {
        *reinterpret_cast<float2*>(to + at) = pair;
      };
    });
  }
}
