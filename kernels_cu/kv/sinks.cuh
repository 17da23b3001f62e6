// A head's sink: a logit that takes part in the softmax and has no value. It joins once, when all
// tokens are in: it is neither scaled nor capped, and stands beside a log-sum-exp that has again
// what smoothing took from K. Of a sink of -inf nothing changes a bit.
#pragma once
#include "kv/extras.cuh"
#include "kv/kv_params.cuh"

template <DecodeSpec S>
__device__ __forceinline__ float sink_of(const DecodeParams& p, int head) {
  return load_extra<S.sinks>(p.sinks, head * p.sinks_stride_head);
}

// The part of the softmax that a head's sink leaves to tokens with this log-sum-exp.
template <DecodeSpec S>
__device__ __forceinline__ float share_beside_sink(const DecodeParams& p, int head, float lse) {
  return lse == -kInf ? 0.0f : 1.0f / (1.0f + expf(sink_of<S>(p, head) - lse));
}

// The log-sum-exp of both.
__device__ __forceinline__ float joined_lse(float sink, float lse) {
  if (lse == -kInf) return sink;
  return fmaxf(lse, sink) + log1pf(expf(-fabsf(lse - sink)));
}
