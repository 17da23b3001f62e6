// Tiles of operand rows in shared memory, and where ldmatrix finds its operands in them.
#pragma once
#include "numeric.cuh"

// Rows of `RowBytes` bytes, 16 bytes apart beyond their length. RowBytes is a multiple of 32, so
// the pitch is an odd multiple of 16 bytes and any 8 consecutive rows of a 16-byte column lie in 8
// different groups of banks: ldmatrix has no conflicts, and every offset is an immediate.
template <int Rows, int RowBytes>
struct SharedTile {
  static_assert(RowBytes % 32 == 0);
  static constexpr int rows = Rows;
  static constexpr int row_bytes = RowBytes;
  static constexpr int pitch = RowBytes + 16;
  static constexpr int bytes = Rows * pitch;
};

// Where a lane points ldmatrix_x4 so that the four registers are ...
template <class Tile>
struct LaneOffset {
  // ... the A operand of 16 rows and one step of k.
  static __device__ __forceinline__ u32 a_operand(int lane) {
    return (lane & 15) * Tile::pitch + (lane >> 4) * 16;
  }
  // ... the B operands of two times 8 rows and one step of k: {b0, b1} of the first, of the second.
  static __device__ __forceinline__ u32 b_operand(int lane) {
    return ((lane & 7) + ((lane >> 4) << 3)) * Tile::pitch + ((lane >> 3) & 1) * 16;
  }
  // ... with ldmatrix_x4_trans, the B operands of two times 8 columns of 16-bit elements, k along
  // the rows of the tile.
  static __device__ __forceinline__ u32 b_operand_trans(int lane) { return a_operand(lane); }
};
