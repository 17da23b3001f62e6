// What smoothing Q takes from the exponents: the products of the means of Q's blocks with the keys,
// less their own vector. The means and the keys are split into two or three halves each.
//
// A CTA owns some keys of one head of K. It holds their terms in registers, as operands of the
// products, and goes through the means of all blocks of the query heads that share the head, 16 at
// a time: the warps split them together and read them from shared memory.
#include "quant/chunk.cuh"
#include "quant/sequence_operand.cuh"
#include "quant/smoothing_params.cuh"
#include "quant/terms.cuh"
#include "quant/transposed_tile.cuh"

template <DeltaSpec S>
struct DeltaShape {
  static constexpr int kWarps = S.num_threads / kWarpSize;
  static constexpr int kWarpKeys = S.keys / kWarps;
  static constexpr int kTiles = kWarpKeys / 8;      // of the keys of one MMA
  static constexpr int kSteps = S.head_dim / 16;    // of the channels of one MMA
  static_assert(kTiles == 1 || kTiles == 2, "lanes write 8 or 16 bytes");
  static_assert(kTokenPad % S.keys == 0 && S.head_dim % 32 == 0);

  // Channels of two steps are dealt out so that a lane has 8 neighbours of every 32, and of them 4
  // in each step: products do not mind, if both operands do it.
  static __device__ __forceinline__ int channel(int step) {
    return step / 2 * 32 + threadIdx.x % 4 * 8 + step % 2 * 4;
  }
};

// A thread's part of 16 rows of means, on the way from memory.
template <DeltaSpec S>
struct MeanRows {
  using H = DeltaShape<S>;
  static constexpr int kOwn = ceil_div(H::kSteps, H::kWarps);  // steps of a warp
  float x[kOwn][2][4];

  static __device__ __forceinline__ int step(int i) {
    return i * H::kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  }

  // `first` is the first row, of which `count` and those after it exist.
  __device__ __forceinline__ void load(const f32* first, int count, int head_dim) {
    const int row = threadIdx.x % kWarpSize / 4;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int channel = H::channel(step(i));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (float& element : x[i][half]) element = 0.0f;
        if (row + 8 * half < count && channel < head_dim) {
          load_floats(x[i][half], first + (row + 8 * half) * head_dim + channel);
        }
      }
    }
  }
};

// The A operands of 16 rows of means.
template <DeltaSpec S>
struct MeanTerms {
  using H = DeltaShape<S>;
  using T = Terms<S.input>;
  uint4 term[H::kSteps][T::kCount][kWarpSize];

  __device__ __forceinline__ void split(const MeanRows<S>& rows) {
#pragma unroll
    for (int i = 0; i < MeanRows<S>::kOwn; ++i) {
      const int step = MeanRows<S>::step(i);
      if (step >= H::kSteps) break;
      u32 word[2][2][T::kCount];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float(&x)[4] = rows.x[i][half];
        T::split(word[half][0], x[0], x[1]);
        T::split(word[half][1], x[2], x[3]);
      }
#pragma unroll
      for (int t = 0; t < T::kCount; ++t) {
        term[step][t][threadIdx.x % kWarpSize] =
            make_uint4(word[0][0][t], word[1][0][t], word[0][1][t], word[1][1][t]);
      }
    }
  }

  __device__ __forceinline__ void get(uint4 (&a)[T::kCount], int step) const {
#pragma unroll
    for (int t = 0; t < T::kCount; ++t) a[t] = term[step][t][threadIdx.x % kWarpSize];
  }
};

// The B operands of a warp's keys.
template <DeltaSpec S>
struct KeyTerms {
  using H = DeltaShape<S>;
  using T = Terms<S.input>;
  u32 term[H::kTiles][H::kSteps][T::kCount][2];

  // `slot` is the warp's first one. Columns of products are keys in such an order that a lane's are
  // neighbours in the order of slots.
  __device__ __forceinline__ void load(const DeltaParams& p, int head, int slot) {
    using Piece = Chunk<S.input>;
    const int column = threadIdx.x % kWarpSize / 4;
#pragma unroll
    for (int tile = 0; tile < H::kTiles; ++tile) {
      const int at = slot + column / 2 * (2 * H::kTiles) + 2 * tile + column % 2;
      const int key = token_in_slot(at);
      const bool exists = key < p.seqlen;
      const char* row = row_address<S.input>(p, head, key);
#pragma unroll
      for (int pair = 0; pair < H::kSteps / 2; ++pair) {
        const int channel = H::channel(2 * pair);
        const bool valid = exists && channel < p.head_dim;
        float x[8];
#pragma unroll
        for (int i = 0; i < 8; i += Piece::kElements) {
          Piece piece;
          piece.template load<S.aligned, false>(row + (channel + i) * bytes_of(S.input), valid);
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            float wide[Piece::kPerWord];
            piece.widen(wide, w);
#pragma unroll
            for (int e = 0; e < Piece::kPerWord; ++e) x[i + w * Piece::kPerWord + e] = wide[e];
          }
        }
        if (p.vector && valid) {
          float vector[8];
          load_floats(vector, p.vector + static_cast<i64>(head) * p.head_dim + channel);
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] -= vector[i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          u32 word[T::kCount];
          T::split(word, x[2 * i] * T::kScale, x[2 * i + 1] * T::kScale);
#pragma unroll
          for (int t = 0; t < T::kCount; ++t) term[tile][2 * pair + i / 2][t][i % 2] = word[t];
        }
      }
    }
  }
};

template <DeltaSpec S>
__device__ __forceinline__ void multiply_means(const DeltaParams& p) {
  using H = DeltaShape<S>;
  using T = Terms<S.input>;
  static_assert(2 * sizeof(MeanTerms<S>) == S.smem_bytes, "cuattn/specs/smoothing.py disagrees");
  extern __shared__ __align__(16) u8 smem[];
  MeanTerms<S>* const means = reinterpret_cast<MeanTerms<S>*>(smem);
  const int head = blockIdx.x / p.tiles;
  const int slot = blockIdx.x % p.tiles * S.keys + threadIdx.x / kWarpSize * H::kWarpKeys;
  KeyTerms<S> keys;
  keys.load(p, head, slot);

  // The first block of a head of which some query sees some key.
  const int first_key = blockIdx.x % p.tiles * S.keys;
  const int first_block = max_of(first_key - p.last_key, 0) / kQBlock;
  // From a multiple of 16 on, the next whose 16 rows have such a block.
  const auto seek = [&](int row) {
    while (row < p.rows && row % p.blocks + 15 < min_of(first_block, p.blocks)) row += 16;
    return row;
  };
  const i64 first_row = static_cast<i64>(head) * p.rows;
  const i64 pitch = static_cast<i64>(p.tiles) * S.keys;
  const int lane_row = threadIdx.x % kWarpSize / 4;
  const f32* const mean = p.mean + first_row * p.head_dim;
  f32* const out =
      p.delta + (first_row + lane_row) * pitch + slot + threadIdx.x % 4 * (2 * H::kTiles);
  const float factor = p.factor / T::kScale;
  MeanRows<S> ahead;
  const auto load = [&](int row) {
    ahead.load(mean + static_cast<i64>(row) * p.head_dim, p.rows - row, p.head_dim);
  };
  int row = seek(0);
  load(row);
  for (int turn = 0; row < p.rows; turn ^= 1) {
    // In turn, so that a warp may still read those of the rows before.
    MeanTerms<S>& rows = means[turn];
    rows.split(ahead);
    const int next = seek(row + 16);
    load(next);
    __syncthreads();
    float large[H::kTiles][4] = {}, small[H::kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < H::kSteps; ++step) {
      uint4 a[T::kCount];
      rows.get(a, step);
#pragma unroll
      for (int tile = 0; tile < H::kTiles; ++tile) {
        T::multiply(large[tile], small[tile], a, keys.term[tile][step]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + lane_row + 8 * half >= p.rows) break;
      float x[4];
#pragma unroll
      for (int i = 0; i < 2 * H::kTiles; ++i) {
        const int at = 2 * half + i % 2;
        x[i] = __fmaf_rn(factor, large[i / 2][at] + small[i / 2][at], p.bias);
      }
      f32* to = out + (row + 8 * half) * pitch;
      if constexpr (H::kTiles == 2) {
        *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
      } else {
        *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
      }
    }
    row = next;
  }
}

template <DeltaSpec S>
__device__ __forceinline__ void deltas(const DeltaParams& p) {
  if constexpr (S.varlen) {
    DeltaParams own = p;
    const Sequence at = narrow<S.input>(own, blockIdx.x / p.tiles);
    if (static_cast<int>(blockIdx.x % p.tiles) * S.keys <
        ceil_div(at.length, kTokenPad) * kTokenPad) {
      multiply_means<S>(own);
    }
  } else {
    multiply_means<S>(p);
  }
}
