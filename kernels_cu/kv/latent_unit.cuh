// A unit of the latent cache: 64 tokens, which all query heads share. cuattn/latent/format.py has
// the same sizes, cuattn/latent/units.py the same order.
//
// All lies as matrices of 8 rows of 16 bytes, as ldmatrix takes them: a row is a token.
//   latent, 8 bits:   [512 / 16][token][16 channels]
//   rope, 16 bits:    [64 / 8][token][8 channels]
//   scales, float32:  [slot], in the slots of layout.cuh
// Transposed, the same matrices of codes are V's.
#pragma once
#include "kv/latent_spec.cuh"
#include "kv/partials.cuh"
#include "kv/room.cuh"
#include "quant/codes.cuh"

constexpr int kLatent = 512;
constexpr int kRope = 64;
constexpr int kLatentUnitTokens = 64;
constexpr int kLatentChunk = 16 * kLatentUnitTokens;  // bytes from 16 of a token's to the next 16
constexpr int kRopeAt = kLatent * kLatentUnitTokens;
constexpr int kLatentScaleAt = kRopeAt + 2 * kRope * kLatentUnitTokens;
constexpr int kLatentUnitBytes = kLatentScaleAt + 4 * kLatentUnitTokens;

// Where a sequence's unit is. KvStore::page_units counts units of 16 tokens; pages have whole ones.
__device__ __forceinline__ u8* latent_unit(const KvStore& store, int sequence, int unit) {
  int page = sequence;
  if (store.pages) {
    const int units = store.page_units * kUnitTokens / kLatentUnitTokens;
    page = store.pages[page_entry(sequence, store.pages_per_sequence, unit / units)];
    unit %= units;
  }
  return store.units + page * store.page_stride + static_cast<i64>(unit) * kLatentUnitBytes;
}

// Four neighbouring elements of a row.
template <Type In>
__device__ __forceinline__ void load_four(float (&x)[4], const char* from, bool aligned) {
  if constexpr (In == Type::fp32) {
    if (aligned) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(from));
      x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = __ldg(reinterpret_cast<const float*>(from) + i);
    }
  } else {
    u32 pair[2];
    if (aligned) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
      pair[0] = two.x, pair[1] = two.y;
    } else {
      const u16* one = reinterpret_cast<const u16*>(from);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        pair[i] = __ldg(one + 2 * i) | static_cast<u32>(__ldg(one + 2 * i + 1)) << 16;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float wide[2];
      if constexpr (In == Type::fp16) {
        ptx::widen_f16x2(wide, pair[i]);
      } else {
        ptx::widen_bf16x2(wide, pair[i]);
      }
      x[2 * i] = wide[0], x[2 * i + 1] = wide[1];
    }
  }
}

// A row of 576 elements, or a token's 512 and 64, as a warp has it: of every 128 latent channels a
// lane has four neighbours, of the rotary ones the first 16 lanes have four.
struct LatentRow {
  static constexpr int kPieces = kLatent / 128;
  float latent[kPieces][4] = {};
  float rope[4] = {};

  static __device__ __forceinline__ int lane() { return threadIdx.x % kWarpSize; }
  static __device__ __forceinline__ int channel(int piece) { return 128 * piece + 4 * lane(); }
  static __device__ __forceinline__ bool has_rope() { return 4 * lane() < kRope; }

  template <Type In>
  __device__ __forceinline__ void load(const char* of_latent, const char* of_rope, bool aligned) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      load_four<In>(latent[i], of_latent + channel(i) * bytes_of(In), aligned);
    }
    if (has_rope()) load_four<In>(rope, of_rope + 4 * lane() * bytes_of(In), aligned);
  }

  // Of the latent channels, in all lanes.
  __device__ __forceinline__ float amax() const {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (const float x : latent[i]) most = ptx::max_nan(most, fabsf(x));
    }
    return ptx::max_across<kWarpSize>(most);
  }

  __device__ __forceinline__ u32 codes(int piece, float factor) const {
    const float* x = latent[piece];
    return pack_codes<Type::int8>(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor);
  }

  // The lane's rotary channels, two a word.
  template <Type To>
  __device__ __forceinline__ u32 pair(int i) const {
    return To == Type::fp16 ? ptx::pack_f16x2(rope[2 * i], rope[2 * i + 1])
                            : ptx::pack_bf16x2(rope[2 * i], rope[2 * i + 1]);
  }
};
