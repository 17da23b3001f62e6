// Scales of sorted keys: of K those of lanes, of V those of their sections.
#pragma once
#include "quant/quantize_params.cuh"
#include "quant/rows.cuh"
#include "quant/token_ranks.cuh"
#include "quant/values.cuh"

// Stores the scales of a block, whose tokens have their places; warp t has lane t's.
template <QuantizeSpec S>
__device__ __forceinline__ void scale_places(const QuantizeParams& p, SortedTokens& sorted,
                                             i64 block, int count) {
  const int lane = threadIdx.x % kWarpSize;
  for (int t = threadIdx.x / kWarpSize; t < 4; t += S.num_threads / kWarpSize) {
    const int token = sorted.token[t * kLanePlaces + lane];
    if (p.k.heads > 0) {
      const float amax = amax_where(token < count, sorted.k_amax[token]);
      if (lane == 0) {
        p.k.scale[block * 4 + t] = Rows<S, Role::key>::Scale::scale(amax);
        sorted.k_factor[t] = Rows<S, Role::key>::Scale::factor(amax);
      }
    }
    if (p.v.heads > 0) {
      float amax = 0.0f;  // of the section that has the lane's number
#pragma unroll
      for (int section = 0; section < kSections; ++section) {
        const bool inside = token < count && section_of(lane) == section;
        const float x = amax_where(inside, sorted.v_amax[token]);
        if (lane == section) amax = x;
      }
      if (lane < kSections) {
        const int at = t * kSections + lane;
        f32* to = p.v.scale + block * 3 * kPlaceScales + at;
        const float scale = Values<S>::Scale::scale(amax);
        to[0] = scale;
        to[kPlaceScales] = log2f(scale);
        // See scale_tokens.
        to[2 * kPlaceScales] = scale == scale ? __fdiv_rn(1.0f, scale) : 0.0f;
        sorted.v_factor[at] = Values<S>::Scale::factor(amax);
      }
    }
  }
}
