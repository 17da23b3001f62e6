// The one thread that fills the rings, ahead of the warpgroups that attend.
#pragma once
#include "layout.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/ldmatrix.cuh"
#include "sm90/group_work.cuh"
#include "sm90/tile_storage.cuh"
#include "tile/turns.cuh"

// Starts the copies of one tile: a box for each panel.
template <class Tile>
__device__ __forceinline__ void copy_panels(u32 smem, const TensorMap& map, int row, int x2, int x3,
                                            int element_bytes, u32 barrier) {
#pragma unroll
  for (int panel = 0; panel < Tile::count; ++panel) {
    ptx::bulk_copy_box(smem + panel * Tile::panel_bytes, map, panel * Tile::pitch / element_bytes,
                       row, x2, x3, barrier);
  }
}

// How many items there are, of which a list of units may say less than the host could know.
template <WgmmaSpec S>
__device__ __forceinline__ int item_count(const WgmmaParams& p) {
  if constexpr (S.rules.varlen) {
    if (p.units) return __ldg(p.unit_count) * p.attention.num_q_heads;
  }
  return p.items;
}

template <WgmmaSpec S>
__device__ __forceinline__ void produce(const WgmmaParams& p, TileStorage<S>& storage) {
  using H = TileShape<S>;
  const u32 full = ptx::smem_address(storage.full);
  const u32 empty = ptx::smem_address(storage.empty);
  const u32 drawn = ptx::smem_address(storage.drawn);
  const u32 q_full = ptx::smem_address(storage.q_full);
  const u32 q_empty = ptx::smem_address(storage.q_empty);
  constexpr bool kBlockScale = H::kScaledScores && !H::kTokenK && !H::kSorted;
  Turn<S.stages> kv;
  Turn<S.q_buffers> q;
  int index = blockIdx.x;
  while (index < item_count<S>(p)) {
    const Item<S> item(p, index);
    const auto& a = item.arguments(p.attention);
    const int box_batch = item.box_batch(a);
    q.wait_empty(q_empty);
    storage.item[q.buffer] = index;
    ptx::mbarrier_arrive(drawn + 8 * q.buffer);
    // Early, because the answer takes long.
    index = p.next_item ? gridDim.x + atomicAdd(p.next_item, 1) : item_count<S>(p);
    const u32 q_barrier = q_full + 8 * q.buffer;
    if (item.all.end <= item.all.begin) {
      ptx::mbarrier_arrive(q_barrier);
    } else {
      ptx::mbarrier_expect(q_barrier, S.groups * H::QTile::bytes);
#pragma unroll
      for (int group = 0; group < S.groups; ++group) {
        copy_panels<typename H::QTile>(ptx::smem_address(storage.q[q.buffer][group]), p.q_map,
                                       item.box_row() + group * kGroupRows, item.head, box_batch,
                                       bytes_of(S.qk), q_barrier);
      }
    }
    q.next();
    const int batch_kv_head = static_cast<int>(item.batch_kv_head(a));
    // Of K's blocks, and of the blocks that scales per token come in.
    const int first_scale = batch_kv_head * ceil_div(key_pitch<S>(a), static_cast<i32>(S.block_kv));
    const int first_pad = batch_kv_head * ceil_div(key_pitch<S>(a), kTokenPad);
    const int first_box = first_pad + item.box_pad(a);
    const int padded = delta_pitch<S>(a);
    const f32* delta = a.delta + (item.batch_head(a) * delta_rows<S>(a) +
                                  item.first_row / kQBlock) * padded;
    Visits<S, S.groups> visits = item.visits(a);
    for (int block = visits.next(); block >= 0; block = visits.next()) {
      kv.wait_empty(empty);
      const u32 barrier = full + 8 * kv.buffer;
      TokenScales<S>& scales = storage.scales[kv.buffer];
      copy_panels<typename H::KTile>(ptx::smem_address(storage.k[kv.buffer]), p.k_map,
                                     item.template box_key<H::kScaledScores>() + block * S.block_kv,
                                     item.kv_head, box_batch, bytes_of(S.qk), barrier);
      if constexpr (H::kTokenK) {
        ptx::bulk_copy(ptx::smem_address(scales.k),
                       a.k_scale + (static_cast<i64>(first_pad) * kTokenPad + block * S.block_kv) /
                                       (H::kThreadK ? 16 : 1),
                       scales.k_bytes, barrier);
      }
      if constexpr (H::kTokenV) {
        ptx::bulk_copy(ptx::smem_address(scales.log2_v),
                       a.v_scale + (static_cast<i64>(first_pad + block) * 3 + 1) * kTokenPad,
                       scales.v_bytes, barrier);
      }
      if constexpr (H::kSorted) {
        const i64 at = static_cast<i64>(first_pad) + block;
        ptx::bulk_copy(ptx::smem_address(scales.k), a.k_scale + at * kPlaceScales, scales.k_bytes,
                       barrier);
        ptx::bulk_copy(ptx::smem_address(scales.log2_v), a.v_scale + (at * 3 + 1) * kPlaceScales,
                       scales.v_bytes, barrier);
        if (a.order) {
          ptx::bulk_copy(ptx::smem_address(scales.order), a.order + at * kSortedBlock,
                         scales.kOrder, barrier);
        }
      }
      if constexpr (S.q_smooth) {
#pragma unroll
        for (int group = 0; group < S.groups; ++group) {
          const int row = min_of(item.first_row + group * kGroupRows, a.seqlen_q - 1);
          const int further = row / kQBlock - item.first_row / kQBlock;
          ptx::bulk_copy(ptx::smem_address(scales.delta[group]),
                         delta + static_cast<i64>(further) * padded + block * S.block_kv,
                         scales.delta_bytes, barrier);
        }
      }
      const u32 v = ptx::smem_address(storage.v[kv.buffer]);
      if constexpr (H::kScaledValues) {
        static_assert(!H::kScaledValues || S.block_kv == kTokenPad);
        // A box is a tile, its rows in the order of _codes_map in cuattn/plan/tensor_maps.py.
        ptx::bulk_copy_box(v, p.v_map, 0, 0, 0, 0, (first_box + block) * (S.head_dim_v / 32),
                           barrier);
      } else {
        copy_panels<typename H::VTile>(v, p.v_map,
                                       item.template box_key<false>() + block * S.block_kv,
                                       item.kv_head, box_batch, bytes_of(S.pv), barrier);
      }
      // The arrival comes last, behind the scale; copies may complete before.
      if constexpr (kBlockScale) scales.k[0] = __ldg(a.k_scale + first_scale + block);
      if constexpr (H::kBlockV) scales.log2_v[0] = __ldg(a.v_scale + first_pad + block);
      ptx::mbarrier_expect(barrier, H::KTile::bytes + H::VTile::bytes + scales.k_bytes +
                                        scales.v_bytes + S.groups * scales.delta_bytes +
                                        (H::kSorted && a.order ? scales.kOrder : 0));
      kv.next();
    }
  }
  q.wait_empty(q_empty);
  storage.item[q.buffer] = kNoItem;
  ptx::mbarrier_arrive(drawn + 8 * q.buffer);
  ptx::mbarrier_arrive(q_full + 8 * q.buffer);
}
