"""What a row of `cuattn bench` is called."""

from __future__ import annotations

from ...bench.comparison import Row
from ...bench.series import Series
from ...records.record import Shape

__all__ = ["row_name", "shape_name"]


def shape_name(shape: Shape) -> str:
    """Return a shape in the letters of the papers, such as "B4 H32 N4096 D128 causal"."""
    q, kv = shape.num_q_heads, shape.num_kv_heads
    heads = f"H{q}" if q == kv else f"H{q}/{kv}"
    causal = " causal" if shape.is_causal else ""
    return f"B{shape.batch} {heads} N{shape.seqlen_kv} D{shape.head_dim}{causal}"


def row_name(row: Row) -> str:
    """Return a name that no other row of a comparison has."""
    if row.shape is None:
        return f"{row.case}, {row.scheme} by {row.implementation}"
    if row.implementation:
        who = Series(row.implementation, row.scheme)
        name = who.name if who.is_ours else f"{who.name} {row.scheme}".rstrip()
    else:
        name = row.scheme
    return f"{row.case} {name}, {shape_name(row.shape)}"
