// Scales of sorted keys: of K and of V one for each section of a lane.
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
    const int section = section_of(in_lane);
    const int token = sorted.token[place];
    const bool exists = token < count;
    if (part >= 4 && p.k.heads > 0) {
      const float amax = section_amax(exists, sorted.k_amax[token], section);
      sorted.k_section_amax[t * kSections + section] = amax;
      sorted.k_factor[token] = exists ? Rows<S, Role::key>::Scale::factor(amax) : 0.0f;
    }
    if (part < 4 && p.v.heads > 0) {
      const float amax = section_amax(exists, sorted.v_amax[token], section);
      sorted.v_section_amax[t * kSections + section] = amax;
      sorted.v_factor[place] = exists ? Values<S>::Scale::factor(amax) : 0.0f;
    }
  }
}

// Stores the scales of the block, by the last warp of the CTA, once all know what they are made of.
template <QuantizeSpec S>
__device__ __forceinline__ void store_place_scales(const QuantizeParams& p,
                                                   const SortedTokens& sorted, i64 block) {
  static_assert(2 * kPlaceScales <= kWarpSize);
  const int i = static_cast<int>(threadIdx.x) - (S.num_threads - kWarpSize);
  if (i >= 0 && i < kPlaceScales && p.v.heads > 0) {
    f32* to = p.v.scale + block * 3 * kPlaceScales + i;
    const float scale = Values<S>::Scale::scale(sorted.v_section_amax[i]);
    to[0] = scale;
    to[kPlaceScales] = log2f(scale);
    // See scale_tokens.
    to[2 * kPlaceScales] = scale == scale ? __fdiv_rn(1.0f, scale) : 0.0f;
  }
  const int of_k = i - kPlaceScales;
  if (of_k >= 0 && of_k < kPlaceScales && p.k.heads > 0) {
    p.k.scale[block * kPlaceScales + of_k] =
        Rows<S, Role::key>::Scale::scale(sorted.k_section_amax[of_k]);
  }
}
