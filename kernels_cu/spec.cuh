// What a kernel of the attention family fixes at compile time; cuattn/spec.py mirrors it.
#pragma once
#include "numeric.cuh"

enum class Type { int8, e4m3, fp16, bf16, fp32 };
enum class Scope { token, block, channel };
// What P is quantized against: the row maximum of the block of keys, or the running row maximum,
// in 255 unsigned steps; or the running maximum in 127 steps (INT-FlashAttention).
enum class PRange { block, row, row_pow2, static127 };

__host__ __device__ constexpr int bytes_of(Type t) {
  return t == Type::int8 || t == Type::e4m3 ? 1 : t == Type::fp32 ? 4 : 2;
}

// Codes mean something with a scale only.
__host__ __device__ constexpr bool is_code(Type t) { return t == Type::int8 || t == Type::e4m3; }

struct AttentionSpec {
  Type qk;              // operands of Q K^T
  Type pv;              // operands of P V
  Type out;             // elements of O
  int head_dim;         // padded to the layouts of the quantizer
  Scope k_scope;        // token or block; ignored when qk is not int8
  Scope v_scope;        // token or channel; ignored when pv is not int8
  PRange p_range;
  bool is_causal;
  int block_kv;         // keys of one step: the scheme's p_block
  int num_warps;
  int row_tiles;        // MMA tiles of 16 query rows that one warp owns
  int stages;           // buffers of K and of V
  bool q_in_registers;  // or re-read from shared memory for every block of keys
  int num_threads;
  int min_ctas;         // a multiprocessor should hold this many CTAs
  int smem_bytes;
};
