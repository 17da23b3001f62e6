// The parts of the problem and the order in which CTAs solve them.
#pragma once
#include "attn/sequence_params.cuh"
#include "attn/visits.cuh"
#include "params.cuh"
#include "sm90/tile_shape.cuh"

// An item is `groups` times 64 query rows of one head; a CTA attends with one after the other.
// Their order is that of their indices: those that follow each other share K and V or use those of
// few heads, so that CTAs find them in the L2 cache, and no long one comes last.
template <bool Varlen>
struct ItemPlace {};
template <>
struct ItemPlace<true> {
  SequencePlace at;
};

template <WgmmaSpec S>
struct Item : ItemPlace<S.rules.varlen> {
  int batch;
  int kv_head;
  int head;
  int first_row;
  KeyRange all;  // blocks of keys that some row sees by its position

  __device__ __forceinline__ Item(const WgmmaParams& p, int index) {
    const AttentionParams& a = p.attention;
    int num_heads = p.items / a.row_blocks;  // of all batches
    int first_head = 0;
    int seqlen_q = a.seqlen_q;
    int all_blocks = a.row_blocks;
    if constexpr (S.rules.varlen) {
      if (p.units) {
        // Those of one sequence after those of another.
        const int2 unit = __ldg(reinterpret_cast<const int2*>(p.units) + index / a.num_q_heads);
        this->at = place_of(a, unit.x);
        seqlen_q = this->at.q.length;
        all_blocks = ceil_div(seqlen_q, TileShape<S>::kRows);
        num_heads = a.num_q_heads;
        first_head = unit.x * a.num_q_heads;
        index -= unit.y * a.num_q_heads;
      }
    }
    // Rows that do not fill an item come after all that do, but not under a mask, which makes them
    // the longest.
    const int row_blocks = S.is_causal ? all_blocks : seqlen_q / TileShape<S>::kRows;
    const int rest = index - num_heads * row_blocks;
    int all_heads = rest;
    int row_block = row_blocks;
    if (rest < 0) {
      // Some heads at a time, all of them with the longest rows first.
      const int first = index / (p.heads_at_a_time * row_blocks) * p.heads_at_a_time;
      const int heads = min_of(p.heads_at_a_time, num_heads - first);
      const int within = index - first * row_blocks;
      all_heads = first + within % heads;
      row_block = S.is_causal ? row_blocks - 1 - within / heads : within / heads;
    }
    all_heads += first_head;
    batch = all_heads / a.num_q_heads;
    head = all_heads % a.num_q_heads;
    kv_head = head / a.heads_per_kv;
    first_row = row_block * TileShape<S>::kRows;
    if constexpr (S.rules.varlen) {
      if (!p.units) this->at = place_of(a, batch);
    }
    all = block_range<S>(arguments(a), first_row, TileShape<S>::kRows).all;
  }

  // Of its sequence.
  __device__ __forceinline__ decltype(auto) arguments(const AttentionParams& a) const {
    if constexpr (S.rules.varlen) {
      return sequence_params<S, TileShape<S>, 1>(a, this->at, batch);
    } else {
      return (a);
    }
  }

  // Where boxes of its rows, and of its keys, begin: batches are one if sequences lie end to end.
  __device__ __forceinline__ int box_batch(const AttentionParams& a) const {
    return S.rules.varlen && a.cu_seqlens_q ? 0 : batch;
  }
  __device__ __forceinline__ int box_row() const {
    if constexpr (S.rules.varlen) return this->at.q.first + first_row;
    return first_row;
  }
  template <bool Codes>
  __device__ __forceinline__ int box_key() const {
    if constexpr (S.rules.varlen) return Codes ? this->at.kv.block * kTokenPad : this->at.kv.first;
    return 0;
  }
  // From the blocks of a head of the batch to those of a sequence's, of V's codes.
  __device__ __forceinline__ int box_pad(const AttentionParams& a) const {
    if constexpr (S.rules.varlen) {
      if (a.cu_seqlens_q) {
        const int heads = a.num_q_heads / a.heads_per_kv;
        return static_cast<int>(shift_of(this->at.kv.block, batch, heads, a.kv_pitch / kTokenPad));
      }
    }
    return 0;
  }

  __device__ __forceinline__ i64 batch_head(const AttentionParams& a) const {
    return static_cast<i64>(batch) * a.num_q_heads + head;
  }
  __device__ __forceinline__ i64 batch_kv_head(const AttentionParams& a) const {
    return static_cast<i64>(batch) * (a.num_q_heads / a.heads_per_kv) + kv_head;
  }

  // Those that some of the 64 rows from `row` on see.
  __device__ __forceinline__ BlockRange blocks(const AttentionParams& a, int row) const {
    if (row >= a.seqlen_q) return {{all.begin, all.begin}, {all.begin, all.begin}};
    return block_range<S>(a, row, kGroupRows);
  }

  __device__ __forceinline__ Visits<S, S.groups> visits(const AttentionParams& a) const {
    return {a, batch, head, first_row, all};
  }
};
