// What an attention kernel of mma.sync fixes at compile time; cuattn/specs/attention.py mirrors it.
#pragma once
#include "numeric.cuh"

// int4 has two codes a byte, the first in the lower half.
enum class Type { int8, int4, e4m3, fp16, bf16, fp32 };
// `sorted`: keys of a block in the order of V's largest elements, as layout.cuh has it.
enum class Scope { token, group, thread, sorted, block, channel, tensor };
// What P is quantized against: the row maximum of the block of keys, or the running row maximum,
// in 255 unsigned steps; or the running maximum in 127 steps (INT-FlashAttention), or in 127 below
// a power of two and 127 above (PTQ4ViT).
enum class PRange { block, row, row_pow2, static127, twin };

__host__ __device__ constexpr int bits_of(Type t) {
  return t == Type::int4 ? 4 : t == Type::int8 || t == Type::e4m3 ? 8 : t == Type::fp32 ? 32 : 16;
}
__host__ __device__ constexpr int bytes_of(Type t) { return bits_of(t) / 8; }
__host__ __device__ constexpr int row_bytes(Type t, int elements) {
  return elements * bits_of(t) / 8;
}

__host__ __device__ constexpr bool is_integer(Type t) { return t == Type::int8 || t == Type::int4; }
// Codes mean something with a scale only.
__host__ __device__ constexpr bool is_code(Type t) { return is_integer(t) || t == Type::e4m3; }

// How an attn_mask is read: packed to bits, 1 for a key that is seen, or as floats that are added.
enum class MaskKind { none, bits, fp32, fp16, bf16 };

// What a kernel does to scores besides the causal mask; nothing of it in a plain one.
struct Rules {
  bool windowed;        // rows see no keys further away than AttentionParams::window_left, _right
  bool softcap;
  bool alibi;
  bool sinks;
  MaskKind attn_mask;
  bool varlen;          // lengths, and where sequences lie, are read from memory
  bool score_mod;       // the caller's own expressions: attn/user_mods.cuh
  bool mask_mod;
  bool score_slope;     // score_mod adds to a score what is linear in the key
  bool mask_last;       // columns of a mask of floats are of a sequence's last keys

  __host__ __device__ constexpr bool biased() const {
    return attn_mask != MaskKind::none && attn_mask != MaskKind::bits;
  }
  // Whether scores become exponents, as floats, before their maxima are taken.
  __host__ __device__ constexpr bool change_scores() const {
    return softcap || alibi || biased() || score_mod;
  }
  // Whether what smoothing K took from scores is in them again: some rule is no addition.
  __host__ __device__ constexpr bool unshifted() const {
    return softcap || (score_mod && !score_slope);
  }
  // Whether a caller's expression may hide any key: one of masks, or one that makes a score -inf.
  __host__ __device__ constexpr bool hide_anywhere() const { return score_mod || mask_mod; }
  // Whether a map says which blocks are visited.
  __host__ __device__ constexpr bool mapped() const { return attn_mask != MaskKind::none; }
};

struct AttentionSpec {
  Type qk;              // operands of Q K^T
  Type pv;              // operands of P V
  Type out;             // elements of O
  int head_dim;         // of Q and K, padded to the layouts of the quantizer
  int head_dim_v;       // of what a CTA has of V and O: all, or one of v_parts
  int v_parts;          // CTAs that share out the channels of V, each with scores of its own
  bool equal_rows;      // rows of K and V, neither of them codes, have as many channels
  Scope k_scope;        // token, group (as of Q), thread, sorted or block, of scales as stored
  int qk_group;         // channels of a group
  Scope v_scope;        // token, sorted, block or channel, of scales as they are stored
  PRange p_range;
  int p_terms;          // bytes that P is the sum of
  bool q_smooth;        // something is added to the scores again: AttentionParams::delta
  bool v_rotated;       // O is rotated back
  bool is_causal;
  Rules rules;
  int block_kv;         // keys of one step: the scheme's p_block
  int num_warps;
  int row_tiles;        // MMA tiles of 16 query rows that one warp owns
  int stages;           // buffers of K and of V
  bool q_in_registers;  // or re-read from shared memory for every block of keys
  int num_threads;
  int min_ctas;         // a multiprocessor should hold this many CTAs
  int smem_bytes;

  // Channels of V as they are stored.
  __host__ __device__ constexpr int channels_v() const { return head_dim_v * v_parts; }
};
