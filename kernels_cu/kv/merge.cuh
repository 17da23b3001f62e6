// The merger of a head's parts, which the last CTA to arrive does, always in the order of tokens:
// the result does not depend on who was when. Loops are rolled, because code that runs once comes
// from memory.
#pragma once
#include "kv/partials.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/reduce.cuh"

// The parts of a head in the workspace, one of each CTA.
template <DecodeSpec S>
struct HeadParts {
  const Partial<S>* first;  // the only one that may be a CTA's last and not its first
  const Partial<S>* rest;   // that of the CTA after
  int count;

  // From one CTA's first part to the next one's.
  static constexpr int kStep = S.batch_invariant ? 1 : 2;

  __device__ __forceinline__ const Partial<S>& part(int n) const {
    return n == 0 ? *first : rest[(n - 1) * kStep];
  }
};

// The parts of one row, merged by a warp in shared memory of its own.
template <DecodeSpec S>
struct RowMerger {
  static constexpr int kRowBytes = 4 * S.head_dim;
  static constexpr int kRoom = sizeof(DecodeStorage<S>::units) / kComputingWarps;
  static constexpr int kPerLane = 2;  // parts that a lane has the numbers of
  static constexpr int kAtATime = min_of(kRoom / kRowBytes, kPerLane * kWarpSize);
  static constexpr int kFours = ceil_div(S.head_dim / 4, kWarpSize);  // channels of a lane, by four

  u8* room;
  int row;
  int lane;
  float4 o[kFours] = {};
  float row_sum = 0.0f;
  float reference = kNoKeySeen;

  __device__ __forceinline__ bool has(int i) const {
    return S.head_dim % 128 == 0 || lane + kWarpSize * i < S.head_dim / 4;
  }

  // Takes in parts first ... first + count - 1; at most kAtATime.
  __device__ __forceinline__ void add(const HeadParts<S>& parts, int first, int count) {
    float own_reference[kPerLane], own_sum[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int n = lane + kWarpSize * i;
      const Partial<S>& own = parts.part(first + min_of(n, count - 1));
      own_reference[i] = __ldcg(own.reference + row);
      own_sum[i] = __ldcg(own.row_sum + row);
      if (n >= count) own_reference[i] = kNoKeySeen;
    }
    u32 to = ptx::smem_address(room) + 16 * lane;
#pragma unroll 4
    for (int n = 0; n < count; ++n) {
      const float4* from = reinterpret_cast<const float4*>(parts.part(first + n).o[row]) + lane;
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        if (has(i)) ptx::cp_async_16(to + 16 * kWarpSize * i, from + kWarpSize * i);
      }
      to += kRowBytes;
    }
    ptx::cp_async_commit();
    float next = reference;
#pragma unroll
    for (const float x : own_reference) next = fmaxf(next, ptx::max_across<kWarpSize>(x));
    const float shrink = ptx::ex2(reference - next);
    reference = next;
    row_sum *= shrink;
    float weight[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      weight[i] = lane + kWarpSize * i < count ? ptx::ex2(own_reference[i] - next) : 0.0f;
      const bool mine = lane + kWarpSize * i < count;
      row_sum += ptx::sum_across<kWarpSize>(mine ? own_sum[i] * weight[i] : 0.0f);
    }
#pragma unroll
    for (float4& x : o) x = make_float4(x.x * shrink, x.y * shrink, x.z * shrink, x.w * shrink);
    ptx::cp_async_wait<0>();
    const float4* from = reinterpret_cast<const float4*>(room) + lane;
#pragma unroll 4
    for (int n = 0; n < count; ++n) {
      const float mine = n < kWarpSize ? weight[0] : weight[1];
      const float w = __shfl_sync(0xffffffffu, mine, n % kWarpSize);
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        if (!has(i)) continue;
        const float4 x = from[kWarpSize * i];
        o[i].x = __fmaf_rn(x.x, w, o[i].x);
        o[i].y = __fmaf_rn(x.y, w, o[i].y);
        o[i].z = __fmaf_rn(x.z, w, o[i].z);
        o[i].w = __fmaf_rn(x.w, w, o[i].w);
      }
      from += kRowBytes / 16;
    }
  }

  __device__ __forceinline__ void store(const DecodeParams& p, const BlockCursor& at,
                                        const RowPlace& place, const f32* lse_shift) const {
    const bool sees_none = kHides<S> ? has_seen_none(reference, row_sum)
                                     : place.template sees<S>(p, at.length) == 0;
    const auto lse_of_tokens = [&] {
      const float lse = row_lse(reference, row_sum, __ldcg(lse_shift + row));
      return sees_none ? -kInf : lse;
    };
    float inverse = sees_none ? 0.0f : 1.0f / row_sum;
    if constexpr (kHas<S.sinks>) inverse *= share_beside_sink<S>(p, place.head, lse_of_tokens());
    auto* to = o_address<S>(p, at.sequence, place);
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int channel = 4 * (lane + kWarpSize * i);
      if (!has(i) || !is_channel<S>(channel)) continue;
      const float4 x = {o[i].x * inverse, o[i].y * inverse, o[i].z * inverse, o[i].w * inverse};
      store_pair<S.input>(to + channel,
                          saturated<S.input>({x.x, x.y}, {o[i].x, o[i].y}, {1.0f, 1.0f}));
      store_pair<S.input>(to + channel + 2,
                          saturated<S.input>({x.z, x.w}, {o[i].z, o[i].w}, {1.0f, 1.0f}));
    }
    if (lane == 0 && p.lse) store_lse<S>(p, at.sequence, place, lse_of_tokens());
  }
};

// Adds up the parts of a head. By all computing threads, when all blocks have been read.
template <DecodeSpec S>
__device__ __forceinline__ void merge_parts(const DecodeParams& p, DecodeStorage<S>& storage,
                                            const BlockCursor& at, const HeadParts<S>& parts) {
  using Merger = RowMerger<S>;
  const int warp = threadIdx.x / kWarpSize;
  u8* room = reinterpret_cast<u8*>(storage.units) + warp * Merger::kRoom / 16 * 16;
#pragma unroll 1
  for (int row = warp; row < S.rows; row += kComputingWarps) {
    const RowPlace place = RowPlace::of<S>(p, at.head, row);
    if (!place.exists) break;
    Merger merger{room, row, static_cast<int>(threadIdx.x) % kWarpSize};
#pragma unroll 1
    for (int first = 0; first < parts.count; first += Merger::kAtATime) {
      merger.add(parts, first, min_of(parts.count - first, Merger::kAtATime));
    }
    merger.store(p, at, place, parts.first->lse_shift);
  }
}
