"""What rows and lines of ``cuattn bench`` are called, and how lines look in every picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...bench.comparison import Row
from ...bench.series import Series
from ...records.record import Shape
from ..pages.figures import INK, SERIES

__all__ = ["COLORS", "Look", "look", "name_of", "row_name", "shape_name"]

# Schemes that have a colour; of 25 lines nobody tells the colours apart.
COLORS = {
    "int8-fast": 0,
    "int8-block": 5,
    "int8": 2,
    "int8-fp8": 4,
    "int4": 3,
    "fp8": 6,
    "fp16": 1,
    "kv-int8": 2,
    "kv-int4": 3,
}


@dataclass(frozen=True)
class Look:
    """Of a line and its marks, as keywords of matplotlib."""

    color: str
    linestyle: str
    marker: str
    linewidth: float
    markersize: float
    zorder: float

    def __call__(self) -> dict[str, Any]:
        """Return the keywords."""
        return dict(vars(self))


def look(series: Series) -> Look:
    """Return how a series is drawn, everywhere the same."""
    if not series.is_ours:
        return Look(INK, "--", "s", 0.9, 2.6, 2.5)
    color = COLORS.get(series.scheme)
    if color is None:
        return Look(SERIES[7], "-", "o", 0.5, 2.0, 2.0)
    return Look(SERIES[color], "-", "o", 1.4, 3.2, 3.0)


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


def name_of(series: Series) -> str:
    """Return what a row of times is called: our scheme, or the baseline and its scheme."""
    return series.name if series.is_ours else f"{series.name}, {series.scheme}"
