// Scales of sorted keys: of K those of lanes, of V those of their sections.
#pragma once
#include "quant/quantize_params.cuh"
#include "quant/rows.cuh"
#include "quant/token_ranks.cuh"
#include "quant/values.cuh"

// Stores the scales of a block, whose tokens have their places. Warps share out the four lanes of
// V, then those of K.
template <QuantizeSpec S>
__device__ __forceinline__ void scale_places(const QuantizeParams& p, SortedTokens& sorted,
                                             i64 block, int count) {
  using KScale = typename Rows<S, Role::key>::Scale;
  using VScale = typename Values<S>::Scale;
  const int in_lane = threadIdx.x % kWarpSize;
  for (int part = threadIdx.x / kWarpSize; part < 8; part += S.num_threads / kWarpSize) {
    const int t = part % 4;
    const int place = t * kLanePlaces + in_lane;
    const int token = sorted.token[place];
    const bool exists = token < count;
    if (part >= 4 && p.k.heads > 0) {
      const float amax = amax_where(exists, sorted.k_amax[token]);
      if (in_lane == 0) p.k.scale[block * 4 + t] = KScale::scale(amax);
      sorted.k_factor[token] = exists ? KScale::factor(amax) : 0.0f;
    }
    if (part < 4 && p.v.heads > 0) {
      float amax = 0.0f;
      int section = 0;
#pragma unroll
      for (int s = 0; s < kSections; ++s) {
        const bool inside = section_of(in_lane) == s;
        const float x = amax_where(exists && inside, sorted.v_amax[token]);
        if (inside) {
          amax = x;
          section = s;
        }
      }
      if (in_lane == 0 || section_of(in_lane) != section_of(in_lane - 1)) {
        f32* to = p.v.scale + block * 3 * kPlaceScales + t * kSections + section;
        const float scale = VScale::scale(amax);
        to[0] = scale;
        to[kPlaceScales] = log2f(scale);
        // See scale_tokens.
        to[2 * kPlaceScales] = scale == scale ? __fdiv_rn(1.0f, scale) : 0.0f;
      }
      sorted.v_factor[place] = exists ? VScale::factor(amax) : 0.0f;
    }
  }
}
