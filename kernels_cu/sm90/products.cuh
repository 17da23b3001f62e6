// The two products of a block of keys, as groups of asynchronous instructions.
#pragma once
#include "ptx/wgmma.cuh"
#include "sm90/tile_shape.cuh"

// S = Q K^T, onto what `s` holds or not. `q` and `k` are descriptors of the tiles.
template <WgmmaSpec S, class Acc>
__device__ __forceinline__ void start_scores(Acc (&s)[TileShape<S>::kScores], u64 q, u64 k) {
  using H = TileShape<S>;
  auto step = [&](auto accumulate, int i) {
    constexpr bool kAccumulate = decltype(accumulate)::value;
    const u64 a = ptx::advance(q, H::QTile::step(i));
    const u64 b = ptx::advance(k, H::KTile::step(i));
    if constexpr (S.qk == Type::int8) {
      ptx::wgmma_s8_s8<kAccumulate>(s, a, b);
    } else if constexpr (S.qk == Type::e4m3) {
      ptx::wgmma_e4m3<kAccumulate>(s, a, b);
    } else if constexpr (S.qk == Type::fp16) {
      ptx::wgmma_f16<kAccumulate>(s, a, b);
    } else {
      ptx::wgmma_bf16<kAccumulate>(s, a, b);
    }
  };
  ptx::hold(s);
  ptx::wgmma_fence();
  step(Bool<kColumnStarts<S>>{}, 0);
#pragma unroll
  for (int i = 1; i < H::kScoreSteps; ++i) step(Bool<true>{}, i);
  ptx::wgmma_commit();
}

// One step of k of P V, of one slice of channels, onto what `sum` holds or not.
template <WgmmaSpec S, bool Accumulate, class Acc>
__device__ __forceinline__ void start_value_step(Acc (&sum)[TileShape<S>::kSlice],
                                                 const u32 (&p)[TileShape<S>::kProbabilities],
                                                 u64 v, int slice, int step) {
  using H = TileShape<S>;
  const u32* a = p + 4 * step;
  if constexpr (H::kScaledValues) {
    const u64 b = ptx::advance(v, slice * S.value_slice * H::VTile::pitch + H::VTile::step(step));
    if constexpr (S.pv == Type::int8) {
      ptx::wgmma_u8_s8<Accumulate>(sum, a, b);
    } else {
      ptx::wgmma_e4m3<Accumulate>(sum, a, b);
    }
  } else {
    static_assert(H::kScaledValues || S.value_slice % 64 == 0 || H::kSlices == 1);
    const u64 b = ptx::advance(v, slice * (S.value_slice / 64) * H::VTile::panel_bytes +
                                      step * 16 * H::VTile::pitch);
    if constexpr (S.pv == Type::fp16) {
      ptx::wgmma_f16<Accumulate>(sum, a, b);
    } else {
      ptx::wgmma_bf16<Accumulate>(sum, a, b);
    }
  }
}

// All steps of k, as one group.
template <WgmmaSpec S, bool Accumulate, class Acc>
__device__ __forceinline__ void start_values(Acc (&sum)[TileShape<S>::kSlice],
                                             u32 (&p)[TileShape<S>::kProbabilities], u64 v,
                                             int slice) {
  ptx::hold(sum);
  ptx::hold(p);
  ptx::wgmma_fence();
  start_value_step<S, Accumulate>(sum, p, v, slice, 0);
#pragma unroll
  for (int step = 1; step < TileShape<S>::kValueSteps; ++step) {
    start_value_step<S, true>(sum, p, v, slice, step);
  }
  ptx::wgmma_commit();
}

// Descriptors of the tiles at an address.
template <class Tile>
__device__ __forceinline__ u64 k_major(u32 address) {
  return ptx::tile_descriptor<Tile::pitch>(address, 16, 8 * Tile::pitch);
}
template <class Tile>
__device__ __forceinline__ u64 mn_major(u32 address) {
  return ptx::tile_descriptor<Tile::pitch>(address, Tile::panel_bytes, 8 * Tile::pitch);
}
