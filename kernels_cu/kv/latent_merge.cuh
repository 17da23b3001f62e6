// The merger of the parts of heads that several CTAs have tokens of, always in the order of tokens:
// the result depends neither on who was when nor on who merges. That is the last CTA to arrive, a
// tile of rows at a time, or, where that would have much to read, a kernel of its own with a CTA
// for each row (merge_latent.cu). kv/arrivals.cuh and kv/merge.cuh have the same for other caches.
#pragma once
#include "kv/latent_storage.cuh"

template <Type Out, class Element>
__device__ __forceinline__ void store_latent_pair(Element* to, const float2& sum, float factor) {
  const float2 x = {sum.x * factor, sum.y * factor};
  store_pair<Out>(to, saturated<Out>(x, sum, {1.0f, 1.0f}));
}

template <DecodeSpec S>
__device__ __forceinline__ void store_latent_four(const DecodeParams& p, int sequence,
                                                  const RowPlace& place, int channel,
                                                  const float4& sum, float factor) {
  auto* to = o_address<S>(p, sequence, place) + channel;
  store_latent_pair<S.input>(to, {sum.x, sum.y}, factor);
  store_latent_pair<S.input>(to + 2, {sum.z, sum.w}, factor);
}

// The parts of a head whose blocks begin at a place of the list.
template <DecodeSpec S>
__device__ __forceinline__ HeadParts<S> latent_parts(const DecodeParams& p,
                                                     const Partition<S>& partition, int begin,
                                                     int blocks) {
  const int cta = partition.owner(begin);
  HeadParts<S> parts;
  parts.first = &partial_of<S>(p, cta, partition.begin(cta) == begin);
  parts.rest = &partial_of<S>(p, cta + 1, true);
  parts.count = partition.owner(begin + blocks - 1) - cta + 1;
  return parts;
}

// Adds up the parts of one row: of `Lanes` threads of whole warps, of which this one has every so
// many channels, by four. `AtATime` parts are loaded together.
template <DecodeSpec S, int Lanes, int AtATime>
__device__ __forceinline__ void merge_latent_row(const DecodeParams& p, const BlockCursor& at,
                                                 const HeadParts<S>& parts, const RowPlace& place,
                                                 int row) {
  constexpr int kFours = kLatent / 4 / Lanes;
  const int lane = threadIdx.x % Lanes;
  float most = kNoKeySeen;
  for (int n = lane % kWarpSize; n < parts.count; n += kWarpSize) {
    most = fmaxf(most, __ldcg(parts.part(n).reference + row));
  }
  const float reference = ptx::max_across<kWarpSize>(most);
  float row_sum = 0.0f;
  float4 o[kFours] = {};
#pragma unroll 1
  for (int first = 0; first < parts.count; first += AtATime) {
    // All loads are under way before the first is used.
    float4 x[AtATime][kFours];
    float of_part[AtATime], sum[AtATime];
#pragma unroll
    for (int k = 0; k < AtATime; ++k) {
      const Partial<S>& part = parts.part(min_of(first + k, parts.count - 1));
      of_part[k] = __ldcg(part.reference + row);
      sum[k] = __ldcg(part.row_sum + row);
      const float4* from = reinterpret_cast<const float4*>(part.o[row]) + lane;
#pragma unroll
      for (int i = 0; i < kFours; ++i) x[k][i] = __ldcg(from + Lanes * i);
    }
#pragma unroll
    for (int k = 0; k < AtATime; ++k) {
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
  const bool sees_none = place.template sees<S>(p, at.length) == 0;
  const float factor = sees_none ? 0.0f : 1.0f / row_sum;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    store_latent_four<S>(p, at.sequence, place, 4 * (lane + Lanes * i), o[i], factor);
  }
  if (lane == 0) {
    const float lse = sees_none ? -kInf : row_lse(reference, row_sum, 0.0f);
    store_lse<S>(p, at.sequence, place, lse);
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
  // Rolled where arrivals are in memory.
#pragma unroll(S.warpgroups ? 1 : 2)
  for (int i = 0; i < 2; ++i) {
    if (!arrivals.left[i]) continue;
    const BlockCursor& at = arrivals.at[i];
    const auto parts = latent_parts(p, partition, arrivals.begin[i], at.blocks);
    if (storage.arrived[i] + 1 != static_cast<u32>(parts.count)) continue;
    if (threadIdx.x == 0) {
      p.arrivals[static_cast<i64>(at.sequence) * partition.heads + at.head] = 0;
    }
#pragma unroll 1
    for (int row = threadIdx.x / kWarpSize; row < S.rows; row += kLatentWarps) {
      const RowPlace place = RowPlace::of<kLatentShare<S>>(p, at.head, row);
      if (!place.exists) break;
      merge_latent_row<kLatentShare<S>, kWarpSize, 8>(p, at, parts, place, row);
    }
  }
}
