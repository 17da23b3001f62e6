// Tiles of operand rows in shared memory, and where ldmatrix finds its operands in them.
#pragma once
#include "numeric.cuh"
#include "ptx/ldmatrix.cuh"

// Rows without gaps, whose 16-byte chunks are permuted so that the same chunk of any 8 consecutive
// rows lies in 8 different groups of banks. Padding the rows would do that too, but a copy of 128
// bytes that is not aligned to 128 takes three times as long to write.
template <int Rows, int RowBytes>
struct SharedTile {
  static_assert(RowBytes % 32 == 0);
  static constexpr int rows = Rows;
  static constexpr int row_bytes = RowBytes;
  static constexpr int bytes = Rows * RowBytes;
  // Rows from one to the next that starts at the same bank, and the bytes that are permuted among
  // each other: RowBytes is a multiple of them.
  static constexpr int kPeriod = RowBytes % 128 == 0 ? 1 : RowBytes % 64 == 0 ? 2 : 4;
  static constexpr int kSpan = 128 / kPeriod;

  // `byte` is a multiple of 16.
  static __device__ __forceinline__ u32 offset(int row, int byte) {
    return row * RowBytes + (byte ^ row / kPeriod * 16 % kSpan);
  }

  // From the address of a chunk to that of one `bytes` further in its row; `bytes` is a multiple of
  // 32 and known at compile time, the tile aligned to 128 bytes.
  static __device__ __forceinline__ u32 advance(u32 address, int bytes) {
    return (address ^ bytes % kSpan) + bytes / kSpan * kSpan;
  }

  // Where a lane points ldmatrix_x4 so that the four registers are ...
  // ... the A operand of the first 16 rows and the first step of k.
  static __device__ __forceinline__ u32 a_operand(int lane) {
    return offset(lane % 16, lane / 16 * 16);
  }
  // ... the B operands of the first two times 8 rows: {b0, b1} of the first, of the second.
  static __device__ __forceinline__ u32 b_operand(int lane) {
    return offset(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 16);
  }
  // ... with ldmatrix_x4_trans, the B operands of two times 8 columns of 16-bit elements, k along
  // the rows of the tile.
  static __device__ __forceinline__ u32 b_operand_trans(int lane) { return a_operand(lane); }
};
