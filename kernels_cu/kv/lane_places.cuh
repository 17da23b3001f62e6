// Where a lane finds in shared memory what it reads and writes of every block. These addresses stay
// in registers from block to block.
#pragma once
#include "kv/decode_shape.cuh"
#include "ptx/shared.cuh"

template <DecodeSpec S>
struct LanePlaces {
  // Of operands, the lane's words of the first one; those of the next one are kWarpSize on.
  const uint4* q;
  const uint4* p;
  uint4* own_p;          // P of the warp's tokens
  const float4* maxima;  // of the lane's first row
  float* own_maximum;    // the warp's among these
  // The warp's units in the first stage, at numbers of the lane's tokens, and of the one token
  // whose numbers of V it makes.
  const u8* units;
  const u8* own_unit = nullptr;
  // Those numbers of V, likewise. There are none where kSharesNumbers is false.
  const float* values = nullptr;
  float* own_value = nullptr;

  __device__ __forceinline__ LanePlaces(DecodeStorage<S>& storage, int warp, int lane)
      : q(ptx::held(&storage.queries.q[0][0][lane])),
        p(ptx::held(&storage.p[0][0][0][lane])),
        own_p(ptx::held(&storage.p[0][0][warp][lane])),
        maxima(ptx::held(&storage.maxima[0][lane / 4])),
        own_maximum(ptx::held(reinterpret_cast<float*>(&storage.maxima[0][lane / 4]) + warp)),
        units(ptx::held(storage.units[0][warp * kWarpUnits] + lane % 4 * 16)) {
    if constexpr (kSharesNumbers<S>) {
      own_unit = ptx::held(storage.units[0][warp * kWarpUnits + lane / kUnitTokens] +
                           lane % kUnitTokens * 4);
      values = ptx::held(&storage.values[warp][0][lane % 4 * 4]);
      own_value = ptx::held(&storage.values[warp][0][lane]);
    }
  }
};
