// The online softmax of the latent cache, as kv/block_softmax.cuh has it: P against the maximum of
// a block. The scale of a token, K's and V's, rides in the exponent and leaves the row sum again.
#pragma once
#include "attn/p_range.cuh"
#include "kv/latent_group_scores.cuh"

template <LatentDecodeSpec S>
struct LatentSoftmax {
  using H = LatentShape<S>;
  float factor;                      // of scores, to be exponents of 2
  int sees[H::kOwnTiles][2];         // tokens of the sequence that a row sees, the first ones
  float reference[H::kOwnTiles][2];  // exponent that O and the sums are relative to
  float row_sum[H::kOwnTiles][2];    // of the lane's tokens
  float shrink[H::kOwnTiles][2];     // what O is multiplied by before the block,
  float weight[H::kOwnTiles][2];     // and the block's P V

  __device__ __forceinline__ void start(const DecodeParams& p, const BlockCursor& at,
                                        const LatentWarp<S>& warp) {
    factor = p.softmax_scale * kLog2E;
    H::for_rows([&](int tile, int half) {
      const RowPlace place = RowPlace::of<kLatentShare<S>>(p, at.head, warp.row(tile, half));
      sees[tile][half] = place.template sees<kLatentShare<S>>(p, at.length);
      reference[tile][half] = kNoKeySeen;
      row_sum[tile][half] = 0.0f;
    });
  }

  // Scores become probabilities, in `storage`, once all have met. `first` is the number of the
  // block's first token, `Hides` whether some rows do not see some tokens.
  template <bool Hides>
  __device__ __forceinline__ void step(typename H::Scores& s, LatentStorage<S>& storage,
                                       const LatentTokens<S>& tokens, int first,
                                       const LatentWarp<S>& warp) {
    const LatentScales<S> scales(storage, tokens, warp);
    const auto score = [&](int tile, int half, int i) { return s[tile][i / 2][2 * half + i % 2]; };
    H::for_rows([&](int tile, int half) {
      float top = -kInf;
#pragma unroll
      for (int i = 0; i < H::kLaneTokens; ++i) {
        const float x = scales.exponent(score(tile, half, i), factor, i);
        top = fmaxf(top, !Hides || seen(tile, half, first, i, warp) ? x : -kInf);
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      if (warp.lane % 4 == 0) storage.maxima[warp.row(tile, half)][warp.share] = top;
    });
    meet_all();
#pragma unroll
    for (int tile = 0; tile < H::kOwnTiles; ++tile) {
      u32 word[H::kSixteens][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float top = block_max(storage, warp.row(tile, half));
        const float next = fmaxf(reference[tile][half], top);
        shrink[tile][half] = ptx::ex2(reference[tile][half] - next);
        weight[tile][half] = ptx::ex2(top - next);
        reference[tile][half] = next;
        const float start = kLog2Of255 - (top == -kInf ? 0.0f : top);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < H::kSixteens; ++i) {
          float y[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int k = 4 * i + e;
            const bool is_seen = !Hides || seen(tile, half, first, k, warp);
            y[e] = ptx::ex2(scales.exponent(score(tile, half, k), factor, k, start));
            y[e] = is_seen ? y[e] : 0.0f;
            sum = is_seen ? __fmaf_rn(y[e], scales.inverse(k), sum) : sum;
          }
          word[i][half] = ptx::pack_u8x4(y[0], y[1], y[2], y[3]);
        }
        row_sum[tile][half] =
            __fmaf_rn(sum, weight[tile][half], row_sum[tile][half] * shrink[tile][half]);
      }
      if constexpr (S.warpgroups) {
        publish(storage, word, tile, warp);
      } else {
#pragma unroll
        for (int i = 0; i < H::kSixteens; ++i) {
          const int sixteen = warp.share * H::kSixteens + i;
          uint4& to = storage.p.lanes[warp.first_tile + tile][sixteen / 2][warp.lane];
          reinterpret_cast<uint2*>(&to)[sixteen % 2] = make_uint2(word[i][0], word[i][1]);
        }
      }
    }
    if constexpr (S.warpgroups) ptx::async_fence();
  }

  // Whether the last step has moved the reference of a row of the warp.
  __device__ __forceinline__ bool has_moved() const {
    bool moved = false;
    H::for_rows([&](int tile, int half) { moved |= shrink[tile][half] != 1.0f; });
    return __any_sync(0xffffffffu, moved);
  }

  // The sums of rows over all lanes and shares. By all threads, after the last block.
  __device__ __forceinline__ void share_sums(LatentStorage<S>& storage,
                                             const LatentWarp<S>& warp) const {
    H::for_rows([&](int tile, int half) {
      float x = row_sum[tile][half];
      x += __shfl_xor_sync(0xffffffffu, x, 1);
      x += __shfl_xor_sync(0xffffffffu, x, 2);
      if (warp.lane % 4 == 0) storage.sums[warp.row(tile, half)][warp.share] = x;
    });
    meet_all();
  }

 private:
  // Of a tile of rows, for all warpgroups: the lane's P, and what O is to be scaled by.
  __device__ __forceinline__ void publish(LatentStorage<S>& storage,
                                          const u32 (&word)[H::kSixteens][2], int tile,
                                          const LatentWarp<S>& warp) const {
    u32* to = &storage.p.word(warp.row(tile, 0), warp.share * H::kTokens) + warp.lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp.row(tile, half);
#pragma unroll
      for (int i = 0; i < H::kSixteens; ++i) {
        to[(i * LatentOperand<S>::kChunk + 16 * 8 * half) / 4] = word[i][half];
      }
      if (warp.share > 0 || warp.lane % 4 > 0) continue;
      storage.shrink[row] = shrink[tile][half];
      storage.weight[row] = weight[tile][half];
    }
  }

  __device__ __forceinline__ bool seen(int tile, int half, int first, int i,
                                       const LatentWarp<S>& warp) const {
    return first + warp.token(i / 4, i % 4) < sees[tile][half];
  }
  static __device__ __forceinline__ float block_max(const LatentStorage<S>& storage, int row) {
    float top = -kInf;
#pragma unroll
    for (const float x : storage.maxima[row]) top = fmaxf(top, x);
    return top;
  }
};
