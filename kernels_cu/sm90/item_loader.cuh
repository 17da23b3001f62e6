// The threads that have the constants of an item in shared memory before it begins.
#pragma once
#include "ptx/ldmatrix.cuh"
#include "sm90/tile_storage.cuh"
#include "tile/turns.cuh"

// By `Threads` threads, of which this is number `thread`.
template <WgmmaSpec S, int Threads>
__device__ __forceinline__ void load_constants(const WgmmaParams& p, TileStorage<S>& storage,
                                               int thread) {
  using H = TileShape<S>;
  const u32 drawn = ptx::smem_address(storage.drawn);
  const u32 q_full = ptx::smem_address(storage.q_full);
  Turn<S.q_buffers> q;
  while (true) {
    q.wait_full(drawn);
    const int index = storage.item[q.buffer];
    if (index != kNoItem) {
      const Item<S> item(p, index);
      const auto& a = item.arguments(p.attention);
      ItemConstants<S>& to = storage.constants[q.buffer];
      if (thread == 0) to.item = item;
      if constexpr (H::kScaledScores) {
        const f32* scales = a.q_scale + item.batch_head(a) * row_pitch<S>(a);
#pragma unroll
        for (int row = thread; row < H::kRows; row += Threads) {
          to.row_scale[row] =
              a.scale_log2 * __ldg(scales + min_of(item.first_row + row, a.seqlen_q - 1));
        }
      }
      const i64 head = item.batch_kv_head(a);
#pragma unroll
      for (int channel = thread; channel < S.head_dim_v; channel += Threads) {
        if constexpr (H::kChannelScale) {
          const float scale = __ldg(a.v_scale + head * S.head_dim_v + channel);
          // NaN of one that is infinite: with float_sums O is not exactly the 0 of its codes.
          to.channel_scale[channel] = fabsf(scale) < kInf ? scale : kNaN;
        }
        to.channel_mean[channel] = a.v_mean && channel < a.head_dim_v
                                       ? __ldg(a.v_mean + head * a.head_dim_v + channel)
                                       : 0.0f;
      }
    }
    ptx::mbarrier_arrive(q_full + 8 * q.buffer);
    if (index == kNoItem) return;
    q.next();
  }
}
