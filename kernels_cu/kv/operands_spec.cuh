// What the kernel fixes at compile time that makes operands of attention of a KV cache;
// cuattn/kv/operands_spec.py mirrors it.
#pragma once
#include "kv/kv_spec.cuh"
#include "layout.cuh"
#include "quant/quantize_spec.cuh"

struct OperandsSpec {
  int head_dim;     // from here to nested as in AppendSpec
  int channels;
  int k_bits;
  int v_bits;
  int group;
  bool v_zero;
  bool rotate;
  bool nested;
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

// What the quantizer of sorted keys is told: its rows are codes of 8 bits.
template <OperandsSpec S>
constexpr QuantizeSpec kSortedCodes = {
    .input = Type::int8,
    .q = Type::int8,
    .k = Type::int8,
    .v = Type::int8,
    .qk_bits = 8,
    .v_bits = 8,
    .head_dim = S.head_dim,
    .head_dim_v = S.head_dim,
    .q_scope = Scope::token,
    .k_scope = Scope::sorted,
    .k_stored = Scope::sorted,
    .k_block = kSortedBlock,
    .qk_group = 32,
    .q_smooth = false,
    .k_smooth = false,
    .rotate = false,
    .v_scope = Scope::sorted,
    .v_smooth = false,
    .aligned = true,
    .varlen = false,
    .qk_lanes = 0,
    .staged = false,
    .v_staged = true,
    .q_tile = kSortedBlock,
    .k_tile = kSortedBlock,
    .v_tile = kSortedBlock,
    .num_threads = S.num_threads,
    .min_ctas = S.min_ctas,
    .smem_bytes = S.smem_bytes,
};
