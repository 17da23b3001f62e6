// What a kernel of the Hopper family fixes at compile time; cuattn/specs/wgmma.py mirrors it.
#pragma once
#include "spec.cuh"

// When a warpgroup multiplies what. `in_turn`: the scores of a block, then its P V. `ahead`: the
// same, but a step begins with its scores there and ends with those of the next one. `interleaved`:
// P V in pieces among the exponentials, and the next scores beside it.
enum class Order { in_turn, ahead, interleaved };

struct WgmmaSpec {
  Type qk;              // operands of Q K^T
  Type pv;              // operands of P V
  Type out;             // elements of O
  int head_dim;         // of Q and K, padded to the layouts of the quantizer
  int head_dim_v;       // of V and O, likewise
  Scope k_scope;        // token, thread, sorted or block, of scales as they are stored
  Scope v_scope;        // token, sorted, block or channel, of scales as they are stored
  PRange p_range;
  int p_terms;          // bytes that P is the sum of
  bool q_smooth;        // something is added to the scores again: AttentionParams::delta
  bool v_rotated;       // O is rotated back
  bool is_causal;
  Rules rules;
  int block_kv;         // keys of one step
  bool integer_o;       // O stays int32 from block to block
  int groups;           // warpgroups that attend, with 64 query rows each
  int stages;           // buffers of K and of V
  int q_buffers;        // buffers of Q
  int value_slice;      // channels of one accumulator of P V
  Order order;
  int group_registers;  // of a thread that attends
  bool tied_steps;      // exponentials of a step of P V wait for a row sum of the one before
  bool float_sums;      // P V is summed on the bits of kMagic, which is taken off O later
  bool column_starts;   // scores begin at what is linear in the key: sm90/column_starts.cuh
  int num_threads;
  int min_ctas;
  int smem_bytes;

  // Channels of V as they are stored.
  __host__ __device__ constexpr int channels_v() const { return head_dim_v; }
};
