// Codes of K and V whose keys are sorted inside their blocks: a CTA has a block of both.
#pragma once
#include "quant/per_row.cuh"
#include "quant/quantize_params.cuh"
#include "quant/row_values.cuh"
#include "quant/sorted_values.cuh"
#include "quant/storage.cuh"
#include "quant/token_ranks.cuh"

// Stores the scales of a block, whose tokens have their places; warp t has lane t's.
template <QuantizeSpec S>
__device__ __forceinline__ void scale_places(const QuantizeParams& p, SortedTokens& sorted,
                                             i64 block, int count) {
  const int lane = threadIdx.x % kWarpSize;
  for (int t = threadIdx.x / kWarpSize; t < 4; t += S.num_threads / kWarpSize) {
    const int token = sorted.token[t * kLanePlaces + lane];
    if (p.k.heads > 0) {
      const float amax = amax_where(token < count, sorted.k_amax[token]);
      if (lane == 0) {
        p.k.scale[block * 4 + t] = Rows<S, Role::key>::Scale::scale(amax);
        sorted.k_factor[t] = Rows<S, Role::key>::Scale::factor(amax);
      }
    }
    if (p.v.heads > 0) {
#pragma unroll
      for (int section = 0; section < kSections; ++section) {
        const bool inside = token < count && section_of(lane) == section;
        const float amax = amax_where(inside, sorted.v_amax[token]);
        if (lane == section) {
          const int at = t * kSections + section;
          f32* to = p.v.scale + block * 3 * kPlaceScales + at;
          const float scale = Values<S>::Scale::scale(amax);
          to[0] = scale;
          to[kPlaceScales] = log2f(scale);
          // See scale_tokens.
          to[2 * kPlaceScales] = scale == scale ? __fdiv_rn(1.0f, scale) : 0.0f;
          sorted.v_factor[at] = Values<S>::Scale::factor(amax);
        }
      }
    }
  }
}

template <QuantizeSpec S>
__device__ __forceinline__ void store_sorted_keys(const QuantizeOperand& x,
                                                  const Rows<S, Role::key>& rows, auto& values,
                                                  const SortedTokens& sorted, i64 block) {
  using T = Rows<S, Role::key>;
  char* out = static_cast<char*>(x.out) + block * kSortedBlock * row_bytes(S.k, S.head_dim);
#pragma unroll
  for (int r = 0; r < T::kRows; ++r) {
    const int place = sorted.place[rows.row(r)];
    const float factor =
        rows.exists(r) ? sorted.k_factor[place / kLanePlaces] * values.unit : 0.0f;
    float code[T::Lanes::kChunks][T::Lanes::kElements];
    values.visit(r, [&](int c, int i, float element) { code[c][i] = element * factor; });
    rows.store_row(out + row_bytes(S.k, column_of(place) * S.head_dim), code);
  }
}

// A block of K and V, or of one of them, which takes the order of the other. Values of K are held
// in registers meanwhile, V is read twice.
template <QuantizeSpec S>
__device__ __forceinline__ void quantize_sorted(const QuantizeParams& p, int cta,
                                                QuantizeStorage<S>& storage) {
  using K = Rows<S, Role::key>;
  using KValues = typename Choice<S.rotate, RotatedValues<K>, RowValues<K>>::type;
  static_assert(S.k_tile == kSortedBlock && S.v_tile == kSortedBlock, "quantize_spec.py: tiles");
  SortedTokens& sorted = storage.sorted;
  const bool has_k = p.k.heads > 0;
  const bool has_v = p.v.heads > 0;
  const QuantizeOperand& either = has_k ? p.k : p.v;
  const i64 block = static_cast<i64>(cta / either.tiles) * either.tiles + cta % either.tiles;
  const TileSource v_from = tile_source<S.input>(has_v ? p.v : p.k, cta, kSortedBlock);
  const auto look_at_v = [&] {
    if (has_v) find_v_amax<S>(p.v, sorted, v_from, p.head_dim);
  };
  if (!has_k) {
    look_at_v();
    take_order<S.num_threads>(sorted, p.order ? p.order + block * kSortedBlock : nullptr);
    __syncthreads();
    scale_places<S>(p, sorted, block, v_from.count);
    __syncthreads();
  } else {
    // Rotated keys leave no registers to be under way meanwhile.
    if constexpr (S.rotate) look_at_v();
    K rows(p.k, cta, p.head_dim);
    if constexpr (!S.rotate) look_at_v();
    KValues values(rows, p.k, p.head_dim, storage.vector);
    float amax[K::kRows];
#pragma unroll
    for (int r = 0; r < K::kRows; ++r) {
      amax[r] = values.template amax<K::Lanes::kChunks>(r, 0);
    }
    const PerRow<K::Lanes::kLanes, K::kRows> largest(amax, ptx::max_nan);
    largest.for_each([&](int r, float x) {
      sorted.k_amax[rows.row(r)] = rows.exists(r) ? __float_as_uint(x) : kPastEnd;
    });
    values.disguise(p.head_dim);
    u8* order = p.order ? p.order + block * kSortedBlock : nullptr;
    if (has_v) {
      __syncthreads();
      sort_tokens<S.num_threads>(sorted);
    } else {
      take_order<S.num_threads>(sorted, order);
    }
    __syncthreads();
    if (has_v && threadIdx.x < kSortedBlock / 16) {
      reinterpret_cast<uint4*>(order)[threadIdx.x] =
          reinterpret_cast<const uint4*>(sorted.token)[threadIdx.x];
    }
    scale_places<S>(p, sorted, block, rows.from.count);
    __syncthreads();
    store_sorted_keys<S>(p.k, rows, values, sorted, block);
  }
  if (has_v) store_sorted_values<S>(p.v, v_from, p.head_dim, storage);
}
