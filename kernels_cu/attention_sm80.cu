// Attention with warp-level matrix products, for every GPU from sm_80 on.
//
// One CTA owns a block of query rows of one head and streams that head's keys and values through
// shared memory; a warp owns 16 or 32 of the rows. Per block of keys:
//   scores      S = Q K^T on the tensor cores
//   softmax     S -> P, with the row maximum of the block or of all blocks so far
//   add_values  O += P V on the tensor cores
#include "attn/key_scale_loader.cuh"
#include "attn/output.cuh"
#include "attn/scores.cuh"
#include "attn/sequence_params.cuh"
#include "attn/shape.cuh"
#include "attn/softmax.cuh"
#include "attn/value_part.cuh"
#include "attn/values.cuh"
#include "attn/visits.cuh"
#include "attn/work.cuh"
#include "params.cuh"
#include "ptx/registers.cuh"
#include "spec.cuh"
#include "tile/loader.cuh"
#include "tile/pipeline.cuh"

template <AttentionSpec S>
struct alignas(128) Stage {
  u8 k[Shape<S>::KTile::bytes];
  u8 v[Shape<S>::VTile::bytes];
  KeyScales<S> scales;
  // Where they are, for addresses in the shared window.
  static constexpr u32 kV = Shape<S>::KTile::bytes;
  static constexpr u32 kScales = kV + Shape<S>::VTile::bytes;
};

template <AttentionSpec S>
struct alignas(128) Storage {
  Stage<S> stages[S.stages];
  u8 q[Shape<S>::QTile::bytes];
  RingBarriers<S.stages> barriers;
  static constexpr u32 kQ = S.stages * sizeof(Stage<S>);
  static constexpr u32 kBarriers = kQ + Shape<S>::QTile::bytes;
};

template <AttentionSpec S>
__device__ __forceinline__ void attend(const AttentionParams& p) {
  using H = Shape<S>;
  static_assert(sizeof(Storage<S>) == S.smem_bytes, "specs/attention.py and Storage disagree");
  static_assert(S.num_threads == S.num_warps * kWarpSize);
  extern __shared__ __align__(128) u8 smem[];
  const Storage<S>& storage = *reinterpret_cast<const Storage<S>*>(smem);
  // Converted once: a conversion reads a special register.
  const u32 shared = ptx::opaque(ptx::smem_address(smem));

  const int thread = ptx::opaque(static_cast<int>(threadIdx.x));
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const Work<S> work(p, static_cast<int>(blockIdx.x));
  const int warp_row = work.first_row + warp * H::kWarpRows;
  const BlockRange range = block_range<S>(p, work.first_row, H::kRows);

  // The quantizer's operands are packed and padded: rows to whole channels of S, V to whole blocks.
  // Others are the caller's own and end at head_dim or head_dim_v and seqlen_kv.
  const int qk_bytes = H::kScaledScores ? H::kQkBytes : p.head_dim * bytes_of(S.qk);
  const int v_channels = S.equal_rows ? p.head_dim : p.head_dim_v;
  const int v_bytes = H::kScaledValues ? S.block_kv : v_channels * bytes_of(S.pv);
  const char* q = static_cast<const char*>(p.q) + work.batch * p.q_stride_batch +
                  work.head * p.q_stride_head + work.first_row * p.q_stride_row;
  const char* k = static_cast<const char*>(p.k) + work.batch * p.k_stride_batch +
                  work.kv_head * p.k_stride_head;
  const char* v = static_cast<const char*>(p.v) + work.batch * p.v_stride_batch +
                  work.kv_head * p.v_stride_head;
  const TileLoader<typename H::QTile, S.num_threads, H::kScaledScores> q_loader(
      thread, p.q_stride_row, qk_bytes);
  const TileLoader<typename H::KTile, S.num_threads, H::kScaledScores> k_loader(
      thread, p.k_stride_row, qk_bytes);
  const TileLoader<typename H::VTile, S.num_threads, H::kScaledValues> v_loader(
      thread, p.v_stride_row, v_bytes);
  // From one key to the next, and for V stored by blocks from one block to the next.
  const i64 k_stride = H::kScaledScores ? H::kQkBytes : p.k_stride_row;
  const i64 v_stride = H::kScaledValues ? S.channels_v() : p.v_stride_row;
  const KeyScaleLoader<S> scale_loader(p, work.batch_head, work.batch_kv_head, work.first_row);

  const Ring<S.stages> ring(shared + Storage<S>::kBarriers);
  if (thread == 0) ring.init(S.num_threads);
  q_loader.load(shared + Storage<S>::kQ, q, p.seqlen_q - work.first_row);
  ptx::cp_async_commit();
  __syncthreads();

  // Blocks are fetched this many steps before they are read, so that the other warps have had time
  // to read what was in their stage.
  constexpr int kAhead = S.stages > 1 ? S.stages - 1 : 1;
  using BlockVisits = Visits<S, ceil_div(H::kRows, kMapRows)>;
  const BlockVisits visits(p, work.batch, work.head, work.first_row, range.all);
  BlockVisits filled = visits;
  // Of the n-th block that is visited.
  auto fill = [&](int n) {
    const int block = filled.next();
    if (block < 0) return;
    const u32 stage = shared + ring.stage(n) * static_cast<u32>(sizeof(Stage<S>));
    // Sorted ones lie anywhere in their block.
    const int keys = H::kSorted ? S.block_kv : p.seqlen_kv - block * S.block_kv;
    const i64 key = static_cast<i64>(block) * S.block_kv;
    ring.wait_empty(n);
    scale_loader.load(stage + Stage<S>::kScales, block, k_loader.smem_offset);
    k_loader.load(stage, k + key * k_stride, keys);
    v_loader.load(stage + Stage<S>::kV, v + key * v_stride,
                  H::kScaledValues ? S.head_dim_v : keys);
    ring.commit(n);
  };
#pragma unroll
  for (int n = 0; n < kAhead; ++n) fill(n);

  OnlineSoftmax<S> softmax[H::kRowTiles];
#pragma unroll
  for (int tile = 0; tile < H::kRowTiles; ++tile) {
    softmax[tile].start(p, work.batch_head, warp_row + 16 * tile, lane);
  }

  // Q's copies are the oldest: what came after them may still be under way.
  ptx::cp_async_wait<0>();
  __syncthreads();
  Queries<S> queries[H::kRowTiles];
#pragma unroll
  for (int tile = 0; tile < H::kRowTiles; ++tile) {
    queries[tile].smem = shared + Storage<S>::kQ +
                         (warp * H::kWarpRows + 16 * tile) * H::QTile::row_bytes +
                         H::QTile::a_operand(lane);
    queries[tile].hold();
    queries[tile].load_scales(p, work.batch_head, warp_row + 16 * tile + lane / 4);
  }
  const u32 k_lane = shared + H::KTile::b_operand(lane);
  const u32 v_lane = shared + Stage<S>::kV +
                     (H::kScaledValues ? H::VTile::b_operand(lane)
                                       : H::VTile::b_operand_trans(lane));

  typename H::Output o[H::kRowTiles] = {};
  int n = 0;  // blocks that have been visited
  auto step = [&](int block, auto masked) {
    constexpr bool kMasked = decltype(masked)::value;
    const u32 stage = ring.stage(n) * static_cast<u32>(sizeof(Stage<S>));
    const KeyScales<S>& keys = storage.stages[ring.stage(n)].scales;
    typename H::Probabilities probabilities[H::kRowTiles];
    ring.wait_full(n);
    // One tile of rows after the other: scores of one, exponentials of the other.
#pragma unroll
    for (int tile = 0; tile < H::kRowTiles; ++tile) {
      typename H::Scores s;
      // Keeps the compiler from starting these scores while the registers hold those before.
      if (tile > 0) __syncwarp();
      scores<S>(s, queries[tile], k_lane + stage, keys, lane);
      if (S.stages > 1 && tile == 0) fill(n + kAhead);
      const int row = warp_row + 16 * tile;
      const ScoreRules<S> rules(p, work.batch, work.head, row, lane);
      softmax[tile].template begin<kMasked>(s, o[tile], keys, rules,
                                            Mask<S>(p, rules.mask, row, block, lane), block, lane);
      softmax[tile].template exponentiate<kMasked>(probabilities[tile], s, keys, p, lane);
    }
#pragma unroll
    for (int part = 0; part < kValueParts<S>; ++part) {
      add_values<S>(o, probabilities, v_lane + stage, softmax, p, part);
    }
    ring.release(n);
    if constexpr (S.stages == 1) fill(n + kAhead);
    ++n;
  };

  if constexpr (S.rules.mapped()) {
    BlockVisits visit = visits;
#pragma unroll 1
    for (int block = visit.next(); block >= 0; block = visit.next()) {
      if constexpr (!S.rules.mask_mod) {
        if (block >= range.whole.begin && block < range.whole.end && visit.whole(p, block)) {
          step(block, Bool<false>{});
          continue;
        }
      }
      step(block, Bool<true>{});
    }
  } else {
    // The blocks of the range, then the first one.
    int block = max_of(range.all.begin, 1);
    int end = range.all.end;
#pragma unroll 1
    for (int round = 0; round < 2; ++round) {
      if constexpr (S.rules.windowed && !S.rules.mask_mod) {
#pragma unroll 1
        for (; block < min_of(range.whole.begin, end); ++block) step(block, Bool<true>{});
      }
      if constexpr (!S.rules.mask_mod) {
#pragma unroll 1
        for (; block < min_of(range.whole.end, end); ++block) step(block, Bool<false>{});
      }
#pragma unroll 1
      for (; block < end; ++block) step(block, Bool<true>{});
      block = 0;
      end = range.all.begin == 0 ? min_of(range.all.end, 1) : 0;
    }
  }

  // Worked out anew, so that the loop has its registers.
  const Work<S> done(p, ptx::opaque(static_cast<int>(blockIdx.x)));
#pragma unroll
  for (int tile = 0; tile < H::kRowTiles; ++tile) {
    softmax[tile].finish();
    const int tile_row = done.first_row + warp * H::kWarpRows + 16 * tile;
    const ScoreRules<S> rules(p, done.batch, done.head, tile_row, lane);
    rules.finish(softmax[tile].reference);
    const int row = tile_row + lane / 4;
    store_rows<S, false>(
        p, [&](int column, int e) { return o[tile][column][e]; },
        GlobalTerms<S, H::kChannelV>(p, done.batch, done.kv_head),
        softmax[tile].reference, softmax[tile].row_sum, {done.batch, done.head, row}, lane);
  }
}

// What the CTA has of V's channels.
template <AttentionSpec S>
__device__ __forceinline__ void attend_part(const AttentionParams& p) {
  if constexpr (S.v_parts > 1) {
    attend<S>(value_part<S>(p));
  } else {
    attend<S>(p);
  }
}

template <AttentionSpec S>
__device__ __forceinline__ void attention_mma(const AttentionParams& p) {
  if constexpr (S.rules.varlen) {
    const int batch = p.first_batch + static_cast<int>(blockIdx.z);
    const AttentionParams own =
        sequence_params<S, Shape<S>, Shape<S>::kGroups>(p, place_of(p, batch), batch);
    // The grid is that of the longest sequence there may be.
    if (Work<S>(own, static_cast<int>(blockIdx.x)).first_row >= own.seqlen_q) return;
    attend_part<S>(own);
  } else {
    attend_part<S>(p);
  }
}
