// Scales of sorted keys: of K those of lanes, of V those of their sections.
#pragma once
#include "quant/quantize_params.cuh"
#include "quant/rows.cuh"
#include "quant/token_ranks.cuh"
#include "quant/values.cuh"

// Finds what makes codes of a block's tokens, which have their places, and what scales are made of.
// Warps share out the four lanes of V, then those of K.
template <QuantizeSpec S>
__device__ __forceinline__ void scale_places(const QuantizeParams& p, SortedTokens& sorted,
                                             int count) {
  // The compiler would else keep from block to block what follows from the thread.
  const u32 thread = ptx::opaque(threadIdx.x);
  const int in_lane = thread % kWarpSize;
  for (int part = thread / kWarpSize; part < 8; part += S.num_threads / kWarpSize) {
    const int t = part % 4;
    const int place = t * kLanePlaces + in_lane;
    const int token = sorted.token[place];
    const bool exists = token < count;
    if (part >= 4 && p.k.heads > 0) {
      const float amax = amax_where(exists, sorted.k_amax[token]);
      sorted.k_lane_amax[t] = amax;
      sorted.k_factor[token] = exists ? Rows<S, Role::key>::Scale::factor(amax) : 0.0f;
    }
    if (part < 4 && p.v.heads > 0) {
      float amax = 0.0f;
#pragma unroll
      for (int section = 0; section < kSections; ++section) {
        const bool inside = section_of(in_lane) == section;
        const float x = amax_where(exists && inside, sorted.v_amax[token]);
        if (inside) amax = x;
      }
      sorted.v_section_amax[t * kSections + section_of(in_lane)] = amax;
      sorted.v_factor[place] = exists ? Values<S>::Scale::factor(amax) : 0.0f;
    }
  }
}

// Stores the scales of the block, by the last warp of the CTA, once all know what they are made of.
template <QuantizeSpec S>
__device__ __forceinline__ void store_place_scales(const QuantizeParams& p,
                                                   const SortedTokens& sorted, i64 block) {
  static_assert(kPlaceScales + 4 <= kWarpSize);
  const int i = static_cast<int>(threadIdx.x) - (S.num_threads - kWarpSize);
  if (i >= 0 && i < kPlaceScales && p.v.heads > 0) {
    f32* to = p.v.scale + block * 3 * kPlaceScales + i;
    const float scale = Values<S>::Scale::scale(sorted.v_section_amax[i]);
    to[0] = scale;
    to[kPlaceScales] = log2f(scale);
    // See scale_tokens.
    to[2 * kPlaceScales] = scale == scale ? __fdiv_rn(1.0f, scale) : 0.0f;
  }
  const int t = i - kPlaceScales;
  if (t >= 0 && t < 4 && p.k.heads > 0) {
    p.k.scale[block * 4 + t] = Rows<S, Role::key>::Scale::scale(sorted.k_lane_amax[t]);
  }
}
