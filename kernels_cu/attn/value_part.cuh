// The arguments of a CTA that has a part of V's channels: those of a call whose V and O are that
// part.
#pragma once
#include "attn/shape.cuh"
#include "params.cuh"

// O of more than 256 channels does not fit the registers of a warp. CTAs beside each other, which
// find K in the L2 cache, share the channels out and have the scores each for themselves.
template <AttentionSpec S>
__device__ __forceinline__ AttentionParams value_part(const AttentionParams& p) {
  static_assert(S.head_dim_v % 32 == 0, "columns are stored by fours");
  static_assert(!S.v_rotated && !S.equal_rows, "what is rotated back has all channels");
  using H = Shape<S>;
  const int part = static_cast<int>(blockIdx.x) % S.v_parts;
  const int first = part * S.head_dim_v;
  AttentionParams own = p;
  // The last part may have padding, which is less than a part.
  own.head_dim_v = min_of(p.head_dim_v - first, S.head_dim_v);
  const int bytes = first * bytes_of(S.pv);
  own.v = static_cast<const char*>(p.v) + (H::kScaledValues ? bytes * S.block_kv : bytes);
  own.o = static_cast<char*>(p.o) + first * bytes_of(S.out);
  if (H::kChannelV) own.v_scale = p.v_scale + first;
  if (p.v_mean) {
    // `GlobalTerms` takes the means of a head to be as many as its channels here.
    const i64 head = static_cast<i64>(p.first_batch + blockIdx.z) * gridDim.y + blockIdx.y;
    own.v_mean = p.v_mean + head * (p.head_dim_v - own.head_dim_v) + first;
  }
  if (part > 0) own.lse = nullptr;
  return own;
}
