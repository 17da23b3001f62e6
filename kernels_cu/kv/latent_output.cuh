// What becomes of O of some heads of a sequence at the end of a CTA's share of its tokens: the
// result, or a part of it, and the merger of parts by the last CTA to arrive, in the order of
// tokens. kv/partials.cuh and kv/merge.cuh have the same for other caches.
#pragma once
#include "kv/arrivals.cuh"
#include "kv/latent_group_values.cuh"
#include "kv/latent_values.cuh"

template <LatentDecodeSpec S, class Element>
__device__ __forceinline__ void store_latent_pair(Element* to, const float2& sum, float factor) {
  const float2 x = {sum.x * factor, sum.y * factor};
  store_pair<S.input>(to, saturated<S.input>(x, sum, {1.0f, 1.0f}));
}

template <LatentDecodeSpec S>
__device__ __forceinline__ void store_latent_four(const DecodeParams& p, int sequence,
                                                  const RowPlace& place, int channel,
                                                  const float4& sum, float factor) {
  auto* to = o_address<kLatentShare<S>>(p, sequence, place) + channel;
  store_latent_pair<S>(to, {sum.x, sum.y}, factor);
  store_latent_pair<S>(to + 2, {sum.z, sum.w}, factor);
}

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
        store_latent_four<S>(p, head.at.sequence, place, channel, four, factor);
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
        store_latent_pair<S>(to + channel + 64 * tile, pair, factor);
      } else {
        auto& part = partial_of<kLatentShare<S>>(p, blockIdx.x, head.is_first);
        *reinterpret_cast<float2*>(part.o[row] + channel + 64 * tile) = pair;
      }
    }
  }
}

// Adds up the parts of some rows of a sequence. By all threads.
template <LatentDecodeSpec S>
__device__ __forceinline__ void merge_latent_rows(const DecodeParams& p, const BlockCursor& at,
                                                  const HeadParts<kLatentShare<S>>& parts) {
  constexpr int kFours = kLatent / 4 / kWarpSize;
  constexpr int kAtATime = 8;  // parts
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
  for (int row = threadIdx.x / kWarpSize; row < S.rows; row += kLatentWarps) {
    const RowPlace place = RowPlace::of<kLatentShare<S>>(p, at.head, row);
    if (!place.exists) break;
    float most = kNoKeySeen;
    for (int n = lane; n < parts.count; n += kWarpSize) {
      most = fmaxf(most, __ldcg(parts.part(n).reference + row));
    }
    const float reference = ptx::max_across<kWarpSize>(most);
    float row_sum = 0.0f;
    float4 o[kFours] = {};
#pragma unroll 1
    for (int first = 0; first < parts.count; first += kAtATime) {
      // All loads are under way before the first is used.
      float4 x[kAtATime][kFours];
      float of_part[kAtATime], sum[kAtATime];
#pragma unroll
      for (int k = 0; k < kAtATime; ++k) {
        const Partial<kLatentShare<S>>& part = parts.part(min_of(first + k, parts.count - 1));
        of_part[k] = __ldcg(part.reference + row);
        sum[k] = __ldcg(part.row_sum + row);
        const float4* from = reinterpret_cast<const float4*>(part.o[row]) + lane;
#pragma unroll
        for (int i = 0; i < kFours; ++i) x[k][i] = __ldcg(from + kWarpSize * i);
      }
#pragma unroll
      for (int k = 0; k < kAtATime; ++k) {
        if (first + k >= parts.count) break;
        const float weight = ptx::ex2(of_part[k] - reference);
        row_sum = __fmaf_rn(sum[k], weight, row_sum);
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
          o[i].x = __fmaf_rn(x[k][i].x, weight, o[i].x);
          o[i].y = __fmaf_rn(x[k][i].y, weight, o[i].y);
          o[i].z = __fmaf_rn(x[k][i].z, weight, o[i].z);
          o[i].w = __fmaf_rn(x[k][i].w, weight, o[i].w);
        }
      }
    }
    const bool sees_none = place.template sees<kLatentShare<S>>(p, at.length) == 0;
    const float factor = sees_none ? 0.0f : 1.0f / row_sum;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      store_latent_four<S>(p, at.sequence, place, 4 * (lane + kWarpSize * i), o[i], factor);
    }
    if (lane == 0) {
      const float lse = sees_none ? -kInf : row_lse(reference, row_sum, 0.0f);
      store_lse<kLatentShare<S>>(p, at.sequence, place, lse);
    }
  }
}

// What `Arrivals::merge` does, with the warps and the mergers of this cache.
template <LatentDecodeSpec S>
__device__ __forceinline__ void merge_latent_parts(const DecodeParams& p,
                                                   LatentStorage<S>& storage,
                                                   const Partition<kLatentShare<S>>& partition,
                                                   const Arrivals& arrivals) {
  if (!arrivals.left[0] && !arrivals.left[1]) return;
  if (threadIdx.x == 0) {
    storage.arrived[0] = arrivals.before[0];
    storage.arrived[1] = arrivals.before[1];
    ptx::acquire();
  }
  meet_all();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!arrivals.left[i]) continue;
    const BlockCursor& at = arrivals.at[i];
    const int begin = arrivals.begin[i];
    const int cta = partition.owner(begin);
    HeadParts<kLatentShare<S>> parts;
    parts.first = &partial_of<kLatentShare<S>>(p, cta, partition.begin(cta) == begin);
    parts.rest = &partial_of<kLatentShare<S>>(p, cta + 1, true);
    parts.count = partition.owner(begin + at.blocks - 1) - cta + 1;
    if (storage.arrived[i] + 1 != static_cast<u32>(parts.count)) continue;
    if (threadIdx.x == 0) {
      p.arrivals[static_cast<i64>(at.sequence) * partition.heads + at.head] = 0;
    }
    merge_latent_rows<S>(p, at, parts);
  }
}
