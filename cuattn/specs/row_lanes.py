"""How rows lie across the lanes of a warp; mirrors quant/row_lanes.cuh."""

from __future__ import annotations

__all__ = ["row_lanes"]


def row_lanes(row_bytes: int) -> int:
    """Return the lanes that share a row, each with every so many-th 16 bytes: `RowLanes`."""
    chunks = row_bytes // 16
    return min(chunks & -chunks, 32)
