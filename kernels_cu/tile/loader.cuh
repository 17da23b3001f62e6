// Copies of tiles from global to shared memory.
#pragma once
#include "numeric.cuh"
#include "ptx/cp_async.cuh"
#include "tile/shared_tile.cuh"

// One thread's share of copying the tiles that follow each other in memory, with `Threads` threads:
// 16 bytes of every kRowStep-th row. `Packed` rows follow each other without gaps and are valid to
// their last byte: then all addresses but one are immediates. Others lie `stride_row` bytes apart.
// An address is a 64-bit part that is the same for all threads and a 32-bit part of the thread.
template <class Tile, int Threads, bool Packed>
struct TileLoader {
  static constexpr int kRowChunks = Tile::row_bytes / 16;
  static constexpr int kThreadRows = Threads / kRowChunks;
  // Chunks are permuted alike in rows that are 8 apart.
  static constexpr bool kAlike = kThreadRows >= 8;
  static constexpr int kRowStep = kAlike ? kThreadRows / 8 * 8 : kThreadRows;
  static constexpr int kSteps = ceil_div(Tile::rows, kRowStep);
  static constexpr bool kEven =
      Threads == kRowStep * kRowChunks && Tile::rows % kRowStep == 0;
  // Of long rows few are copied at a time: the compiler would keep an offset of each.
  static constexpr int kUnrolled = !kAlike && (kRowChunks > 32 || kSteps > 32) ? 1 : kSteps;

  i64 stride_row;
  u32 smem_offset;
  u32 gmem_offset;
  int row;      // a row past the tile for a thread without a share
  int byte;
  bool in_row;  // or the chunk lies beyond the valid bytes of its row

  __device__ __forceinline__ TileLoader(int thread, i64 runtime_stride, int valid_bytes)
      : stride_row(Packed ? Tile::row_bytes : runtime_stride) {
    byte = thread % kRowChunks * 16;
    row = thread / kRowChunks;
    smem_offset = Tile::offset(row, byte);
    in_row = Packed || byte < valid_bytes;
    gmem_offset = in_row ? static_cast<u32>(row * stride_row) + byte : 0u;
    if (thread >= kRowStep * kRowChunks) row = Tile::rows;
  }

  // Starts the copy of one tile. Rows from `valid_rows` on become zeros.
  __device__ __forceinline__ void load(u32 smem, const char* gmem, int valid_rows) const {
    const i64 step = kRowStep * (Packed ? Tile::row_bytes : stride_row);
    if (in_row && valid_rows >= Tile::rows) {
#pragma unroll kUnrolled
      for (int i = 0; i < kSteps; ++i) {
        if (kEven || row + i * kRowStep < Tile::rows) {
          ptx::cp_async_16(smem + offset(i), gmem + i * step + gmem_offset);
        }
      }
    } else {
#pragma unroll kUnrolled
      for (int i = 0; i < kSteps; ++i) {
        const int at = row + i * kRowStep;
        const bool valid = in_row && at < valid_rows;
        if (at < Tile::rows) {
          ptx::cp_async_16(smem + offset(i), valid ? gmem + i * step + gmem_offset : gmem,
                           valid ? 16 : 0);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ u32 offset(int i) const {
    return kAlike ? smem_offset + i * kRowStep * Tile::row_bytes
                  : Tile::offset(row + i * kRowStep, byte);
  }
};
