// What happens to the channels of O on their way out.
#pragma once
#include "params.cuh"

// What becomes of two neighbouring channels of O: times V's scales, plus V's means.
struct ChannelTerms {
  float2 scale = {1.0f, 1.0f};
  float2 mean = {0.0f, 0.0f};
};

// Those of one head, in global memory.
template <auto S, bool ChannelScale>
struct GlobalTerms {
  const f32* scales;
  const f32* means;  // without padding; may be null
  int head_dim_v;

  __device__ __forceinline__ GlobalTerms(const AttentionParams& p, int batch, int kv_head)
      : head_dim_v(p.head_dim_v) {
    const i64 head = static_cast<i64>(batch) * (p.num_q_heads / p.heads_per_kv) + kv_head;
    scales = p.v_scale + head * S.channels_v();
    means = p.v_mean ? p.v_mean + head * p.head_dim_v : nullptr;
  }
  __device__ __forceinline__ ChannelTerms operator()(int channel) const {
    ChannelTerms terms;
    if constexpr (ChannelScale) {
      terms.scale = __ldg(reinterpret_cast<const float2*>(scales + channel));
    }
    if (means && channel < head_dim_v) {
      terms.mean = __ldg(reinterpret_cast<const float2*>(means + channel));
    }
    return terms;
  }
};
