// Rows in shared memory, on their way to registers: those of a CTA's next tile are copied while it
// works on the one that it has.
#pragma once
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/registers.cuh"
#include "ptx/shared.cuh"
#include "quant/row_tile.cuh"

// Of a tile, of which each warp copies an equal part. `Readers` is the `RowLanes` of those who read
// them.
template <Type In, int HeadDim, int Tokens, int Threads, class Readers>
struct StagedRows {
  using Lanes = RowLanes<In, HeadDim>;  // of those who copy
  static constexpr int kPitch = row_bytes(In, HeadDim);
  static constexpr int kWarpTokens = Tokens * kWarpSize / Threads;
  static constexpr int kAtATime = Lanes::kWarpRows;
  static_assert(kWarpTokens % kAtATime == 0);

  alignas(128) char rows[Tokens * kPitch];

  // Eight lanes read at a time, 16 bytes each. What they read of several rows would lie in the same
  // banks; so chunks of a row trade places inside each 128 bytes, in bits of their numbers that
  // those lanes have in common.
  static constexpr bool kPermuted = kPitch % 128 == 0;
  static __device__ __forceinline__ int permutation(int row) {
    constexpr int kSpan = Readers::kLanes * Readers::kRun;
    if constexpr (!kPermuted) return 0;
    return row % Readers::kRun +
           (kSpan < 8 ? row / Readers::kRun % max_of(8 / kSpan, 1) * kSpan : 0);
  }

  // Begins to copy the warp's rows, with zeros where there are none.
  __device__ __forceinline__ void fetch(const TileSource& from, int head_dim) {
    // The compiler would else keep from tile to tile what follows from the thread.
    const u32 thread = ptx::opaque(threadIdx.x);
    const int in_warp = Lanes::group(thread) % kAtATime;
    const int first = static_cast<int>(thread / kWarpSize) * kWarpTokens + in_warp;
    const int first_channel = Lanes::first_channel(Lanes::lane(thread));
    const char* x = from.x + first * from.stride_token + first_channel * bytes_of(In);
    const u32 to = ptx::smem_address(rows) + first * kPitch;
#pragma unroll
    for (int r = 0; r < kWarpTokens; r += kAtATime) {
#pragma unroll
      for (int c = 0; c < Lanes::kChunks; ++c) {
        const int channel = first_channel + Lanes::channel_offset(c);
        const int chunk = channel / Lanes::kElements ^ permutation(in_warp + r);
        const bool exists = r < from.count - first && channel < head_dim;
        ptx::cp_async_once_16(to + r * kPitch + chunk * 16,
                              x + Lanes::channel_offset(c) * bytes_of(In), exists ? 16 : 0);
      }
      x += kAtATime * from.stride_token;
    }
  }

  // What a reader has in its c-th chunk of a row.
  __device__ __forceinline__ uint4 read(int row, int c) const {
    const int first =
        row * kPitch + (Readers::first_channel(Readers::lane()) / Readers::kElements ^
                        permutation(row)) * 16;
    const int chunk = Readers::channel_offset(c) / Readers::kElements;
    const int at = kPermuted ? (first ^ chunk % 8 * 16) + chunk / 8 * 128 : first + chunk * 16;
    return ptx::load_shared_16(ptx::smem_address(rows) + at);
  }
};

// In place of those that go to registers at once.
struct NoStagedRows {};

// Begins to copy a vector to where the warp will read it, with zeros in the padding.
template <int HeadDim>
__device__ __forceinline__ void fetch_vector(f32* to, const f32* vector, int head_dim) {
  const int lane = ptx::opaque(threadIdx.x % kWarpSize);
#pragma unroll
  for (int i = 0; i < HeadDim; i += 4 * kWarpSize) {
    const int channel = i + lane * 4;
    if (channel < HeadDim) {
      ptx::cp_async_16(ptx::smem_address(to + channel), vector + channel,
                       channel < head_dim ? 16 : 0);
    }
  }
}

// The same, and waits for it.
template <int HeadDim>
__device__ __forceinline__ void share_vector(f32* to, const f32* vector, int head_dim) {
  __syncwarp();
  for (int i = threadIdx.x % kWarpSize; i < HeadDim; i += kWarpSize) {
    to[i] = i < head_dim ? vector[i] : 0.0f;
  }
  __syncwarp();
}
