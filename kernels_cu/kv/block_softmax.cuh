// The online softmax of the decoding kernel: P against the maximum of a block, as p_range "block"
// has it (docs/numerics.md). The four computing warps have a quarter of the block's tokens each and
// meet twice, when the maxima and when P are known.
#pragma once
#include "attn/p_range.cuh"
#include "kv/block_maxima.cuh"
#include "kv/value_scales.cuh"
#include "kv/visible_tokens.cuh"
#include "ptx/convert.cuh"

// What a lane knows of its rows, g and g + 8 of every tile.
template <DecodeSpec S>
struct BlockSoftmax {
  using H = DecodeShape<S>;
  static constexpr int kGroups = Unit<S>::kVGroups;
  static constexpr int kZeros = Unit<S>::kHasVZero ? kGroups : 1;
  VisibleTokens<S> visible;
  float reference[H::kTiles][H::kHalves];         // exponent that O and the sums are relative to
  float row_sum[H::kTiles][H::kHalves];           // of the lane's tokens
  float zero_sum[kZeros][H::kTiles][H::kHalves];  // of P times zero points, likewise
  float shrink[H::kTiles][H::kHalves];            // what O is multiplied by before the block,
  float weight[kGroups][H::kTiles][H::kHalves];   // and the block's P V

  __device__ __forceinline__ void start(const DecodeParams& p, const BlockCursor& at, int lane) {
    visible.start(p, at, lane);
    H::for_rows([&](int tile, int half) {
      reference[tile][half] = kNoKeySeen;
      row_sum[tile][half] = 0.0f;
#pragma unroll
      for (int group = 0; group < kZeros; ++group) zero_sum[group][tile][half] = 0.0f;
    });
  }

  // Scores become probabilities, in shared memory, where each `OwnValue` has been stored. `first`
  // is the number of the warp's first token, `Simple` as in simple_blocks.cuh.
  template <bool Simple>
  __device__ __forceinline__ void step(typename H::Scores& s, const LanePlaces<S>& at,
                                       const LaneTokens<S>& tokens, int first, int lane) {
    H::for_rows([&](int tile, int half) {
#pragma unroll
      for (int i = 0; i < kLaneTokens; ++i) {
        float& x = score_of<S>(s[tile], i / 4, i % 4, half);
        x = visible.template sees<Simple>(tile, half, first, i, lane) ? x : -kInf;
      }
    });
    ValueScales<S> scales;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      scales.load_log2(at, tokens, group);
      share_maxima(at, s, scales.log2, group, lane);
    }
    meet();
    move_reference(at);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if constexpr (kGroups > 1) scales.load_log2(at, tokens, group);
      scales.load_others(at, tokens, group);
      exponentiate<Simple>(s, at, scales, group, first, lane);
    }
    meet();
  }

 private:
  __device__ __forceinline__ void move_reference(const LanePlaces<S>& at) {
    H::for_rows([&](int tile, int half) {
      float top[kGroups];
      float next = reference[tile][half];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        top[group] = block_max<S>(at, group, tile, half);
        next = fmaxf(next, top[group]);
      }
      shrink[tile][half] = ptx::ex2(reference[tile][half] - next);
      reference[tile][half] = next;
      row_sum[tile][half] *= shrink[tile][half];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        weight[group][tile][half] = ptx::ex2(top[group] - next);
      }
      if constexpr (Unit<S>::kHasVZero) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          zero_sum[group][tile][half] *= shrink[tile][half];
        }
      }
    });
  }

  // A token's part of a sum over tokens, of which `x` is anything if the row does not see it. Of
  // nested codes it is one operation, in simple blocks and in others.
  static __device__ __forceinline__ float with_token(float sum, float y, float x, bool seen) {
    if constexpr (S.nested) return __fmaf_rn(y, seen ? x : 0.0f, sum);
    return sum + (seen ? y * x : 0.0f);
  }

  template <bool Simple>
  __device__ __forceinline__ void exponentiate(typename H::Scores& s, const LanePlaces<S>& at,
                                               const ValueScales<S>& scales, int group, int first,
                                               int lane) {
#pragma unroll
    for (int tile = 0; tile < H::kTiles; ++tile) {
      u32 word[4] = {};
#pragma unroll
      for (int half = 0; half < H::kHalves; ++half) {
        const float top = block_max<S>(at, group, tile, half);
        const float start = kLog2Of255 - (top == -kInf ? 0.0f : top);
        float sum = 0.0f;
        float of_zeros = 0.0f;
#pragma unroll
        for (int unit = 0; unit < kWarpUnits; ++unit) {
          float y[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int i = 4 * unit + e;
            const bool seen = visible.template sees<Simple>(tile, half, first, i, lane);
            y[e] = ptx::ex2(score_of<S>(s[tile], unit, e, half) + (scales.log2[i] + start));
            y[e] = seen ? y[e] : 0.0f;
            if (group == 0) sum = with_token(sum, y[e], scales.inverse[i], seen);
            if constexpr (Unit<S>::kHasVZero) {
              of_zeros = with_token(of_zeros, y[e], scales.zero[i], seen);
            }
          }
          word[2 * unit + half] = ptx::pack_u8x4(y[0], y[1], y[2], y[3]);
        }
        if (group == 0) {
          row_sum[tile][half] = __fmaf_rn(sum, weight[0][tile][half], row_sum[tile][half]);
        }
        if constexpr (Unit<S>::kHasVZero) {
          float& all = zero_sum[group][tile][half];
          all = __fmaf_rn(of_zeros, weight[group][tile][half], all);
        }
      }
      at.own_p[(group * H::kTiles + tile) * H::kValueSteps * kWarpSize] =
          make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
};
