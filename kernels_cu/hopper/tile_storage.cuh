// Shared memory of a CTA: tiles that TMA fills, and the barriers that say when.
#pragma once
#include "hopper/tile_shape.cuh"

// Scales that differ from key to key, in slot order (cuattn/reference/layout.py), or of the block.
template <WgmmaSpec S>
struct alignas(128) TokenScales {
  static constexpr int kKeys = TileShape<S>::kTokenK ? S.block_kv : 0;
  static constexpr int kValues = TileShape<S>::kTokenV ? S.block_kv : 0;
  float k[kKeys ? kKeys : 4];           // or only k[0], of the whole block
  float log2_v[kValues ? kValues : 4];  // V's scale rides in the exponent
  float inverse_v[kValues ? kValues : 4];
  static constexpr u32 k_bytes = 4 * kKeys;
  static constexpr u32 v_bytes = 8 * kValues;
};

constexpr int kNoItem = -1;

template <WgmmaSpec S>
struct alignas(1024) TileStorage {
  using H = TileShape<S>;
  u8 k[S.stages][H::KTile::bytes];
  u8 v[S.stages][H::VTile::bytes];
  u8 q[S.q_buffers][S.groups][H::QTile::bytes];
  TokenScales<S> scales[S.stages];
  u64 full[S.stages];
  u64 empty[S.stages];
  u64 q_full[S.q_buffers];
  u64 q_empty[S.q_buffers];
  int item[S.q_buffers];  // whose Q it is, or kNoItem after the last one
};
