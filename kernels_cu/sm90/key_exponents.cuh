// Scores of keys that have scales of their own.
#pragma once
#include "sm90/group_scores.cuh"

// s becomes the bits of the exponent: (s * sk) * (softmax_scale * log2 e * sq) + log2 sv + delta.
template <WgmmaSpec S>
__device__ __forceinline__ void apply_key_scales(typename GroupScores<S>::Scores& s,
                                                 const TokenScales<S>& keys,
                                                 const float (&row_scale)[2], int group,
                                                 int lane) {
  using H = TileShape<S>;
  using Raw = GroupScores<S>;
#pragma unroll
  for (int pair = 0; pair < H::kKeyTiles / 2; ++pair) {
    float sk[4];
    float added[4] = {};
    if constexpr (H::kThreadK) {
      sk[0] = sk[1] = sk[2] = sk[3] = keys.k[pair / 4 * 4 + lane % 4];
    } else {
      Raw::load_four(sk, keys.k, pair, lane);
    }
    if constexpr (H::kTokenV) Raw::load_four(added, keys.log2_v, pair, lane);
    if constexpr (S.q_smooth) {
      float delta[4];
      Raw::load_four(delta, keys.delta[group], pair, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) added[i] += delta[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        typename Raw::Acc& x = s[8 * pair + 4 * (i / 2) + 2 * half + i % 2];
        const float s = static_cast<float>(x);
        x = __float_as_int(H::kThreadK ? __fmaf_rn(s, row_scale[half] * sk[i], added[i])
                                       : __fmaf_rn(s * sk[i], row_scale[half], added[i]));
      }
    }
  }
}
