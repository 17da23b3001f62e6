// What makes codes of a unit's rows, by sections of them; reference/kv_cache.py does the same.
#pragma once
#include "kv/unit_rows.cuh"
#include "quant/codes.cuh"
#include "quant/per_row.cuh"

// Where numbers of tokens lie in a unit: [group][slot].
template <class Rows>
struct SlotNumbers {
  f32* numbers;
  const Rows& rows;
  const NewTokens& fresh;

  __device__ __forceinline__ void store(int group, int r, float x) const {
    if (fresh.has(rows.token(r))) numbers[group * kUnitTokens + rows.slot(r)] = x;
  }
};

// The largest magnitude of a section, less the vector if it is smoothed, is the largest code.
template <class Rows, int Bits, int Group, bool Smooth>
struct SymmetricCodes {
  using Section = Sections<typename Rows::Lanes, Group>;
  using Scale = Scaling<Type::int8, Bits>;
  const typename Rows::Vector& vector;
  float factor[Section::kCount][Rows::kRows];

  // Stores the scales.
  __device__ __forceinline__ SymmetricCodes(const Rows& rows, const typename Rows::Vector& vector,
                                            const SlotNumbers<Rows>& scales)
      : vector(vector) {
#pragma unroll
    for (int s = 0; s < Section::kCount; ++s) {
      float amax[Rows::kRows];
#pragma unroll
      for (int r = 0; r < Rows::kRows; ++r) {
        amax[r] =
            rows.tile.template amax<Smooth, Section::kChunks>(r, vector, s * Section::kChunks);
      }
      const PerRow<Section::kLanes, Rows::kRows> largest(amax, ptx::max_nan);
      largest.for_each(
          [&](int r, float a) { scales.store(Section::group(s), r, Scale::scale(a)); });
      largest.share(factor[s], Scale::factor);
    }
  }

  // Of element i of chunk c of the lane's r-th row: its code before rounding.
  __device__ __forceinline__ float steps(int r, int c, int i, float x) const {
    if constexpr (Smooth) x -= vector.at[c][i];
    return x * factor[c / Section::kChunks][r];
  }

  static __device__ __forceinline__ u32 pack(float x0, float x1, float x2, float x3) {
    return pack_codes<Type::int8>(x0, x1, x2, x3);
  }
};

// The smallest element of a section is code -8, the largest is 7.
template <class Rows, int Group>
struct RangeCodes {
  using Section = Sections<typename Rows::Lanes, Group>;
  static constexpr float kSteps = 15.0f;
  static constexpr float kMiddle = 8.0f;
  float low[Section::kCount][Rows::kRows];
  float factor[Section::kCount][Rows::kRows];

  // Stores scales and zero points.
  __device__ __forceinline__ RangeCodes(const Rows& rows, const SlotNumbers<Rows>& scales,
                                        const SlotNumbers<Rows>& zeros) {
#pragma unroll
    for (int s = 0; s < Section::kCount; ++s) {
      float smallest[Rows::kRows], largest[Rows::kRows];
#pragma unroll
      for (int r = 0; r < Rows::kRows; ++r) {
        smallest[r] = kInf;
        largest[r] = -kInf;
        rows.tile.template visit<Section::kChunks>(
            r, s * Section::kChunks, [&](int, int, float x) {
              smallest[r] = ptx::min_nan(smallest[r], x);
              largest[r] = ptx::max_nan(largest[r], x);
            });
      }
      using Numbers = PerRow<Section::kLanes, Rows::kRows>;
      const Numbers lows(smallest, ptx::min_nan);
      Numbers ranges(largest, ptx::max_nan);
#pragma unroll
      for (int i = 0; i < Numbers::kOwn; ++i) {
        ranges.own[i] = ptx::max_nan(ranges.own[i] - lows.own[i], kAmaxFloor);
      }
      ranges.for_each([&](int r, float range) {
        scales.store(Section::group(s), r, __fdiv_rn(range, kSteps));
      });
      Numbers of_zero = lows;
#pragma unroll
      for (int i = 0; i < Numbers::kOwn; ++i) {
        of_zero.own[i] += kMiddle * __fdiv_rn(ranges.own[i], kSteps);  // the product is exact
      }
      of_zero.for_each([&](int r, float zero) { zeros.store(Section::group(s), r, zero); });
      ranges.share(factor[s], [](float range) { return __fdiv_rn(kSteps, range); });
      lows.share(low[s], [](float x) { return x; });
    }
  }

  // As above, but steps from the smallest element.
  __device__ __forceinline__ float steps(int r, int c, int, float x) const {
    const int s = c / Section::kChunks;
    const float y = (x - low[s][r]) * factor[s][r];
    return y == y ? y : kMiddle;  // NaN is in the scale
  }

  // Less 8, which of 4 bits turns the upper one.
  static __device__ __forceinline__ u32 pack(float x0, float x1, float x2, float x3) {
    return ptx::pack_u8x4(x0, x1, x2, x3) ^ 0x08080808u;
  }
};
