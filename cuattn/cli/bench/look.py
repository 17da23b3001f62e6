"""How lines of ``cuattn bench`` look in every picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...bench.series import Series
from ..figures import INK, SERIES

__all__ = ["COLORS", "KEY", "Look", "look"]

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
KEY = (
    "Coloured lines with dots are schemes of cuattn, thin grey ones its other schemes, dashed ones "
    "with squares implementations by others. Names stand beside the ends of lines, in their order."
)


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
