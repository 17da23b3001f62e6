"""Figures in aligned columns, in groups with a title each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Group", "Table", "number", "render"]

GAP = "  "
INDENT = "  "


@dataclass(frozen=True)
class Group:
    """Rows of a table that belong together.

    Attributes
    ----------
    title : str
        Written above them.
    rows : sequence of (str, sequence of float or None)
        A name and one figure for each column; None where there is none.
    """

    title: str
    rows: Sequence[tuple[str, Sequence[float | None]]]


@dataclass(frozen=True)
class Table:
    """Groups of rows under common column titles; `str` lays it out.

    Attributes
    ----------
    columns : sequence of str
    groups : sequence of Group
    title : str
        Empty if the groups say enough.
    """

    columns: Sequence[str]
    groups: Sequence[Group]
    title: str = ""

    def __str__(self) -> str:
        return f"{self.title}\n" * bool(self.title) + render(self.columns, self.groups)


def number(x: float | None) -> str:
    """Show three digits of a figure."""
    if x is None:
        return "-"
    return f"{x:.0f}" if 1000 <= abs(x) < math.inf else f"{x:#.3g}".rstrip(".")


def render(columns: Sequence[str], groups: Sequence[Group]) -> str:
    """Lay out groups of rows under common column titles; names are on the left, figures right."""
    cells = [
        [INDENT + name, *map(number, figures)] for group in groups for name, figures in group.rows
    ]
    widths = [max(map(len, column)) for column in zip(["", *columns], *cells, strict=True)]
    lines = [_line(["", *columns], widths)]
    rows = iter(cells)
    for group in groups:
        lines.append(group.title)
        lines += [_line(next(rows), widths) for _ in group.rows]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name = cells[0].ljust(widths[0])
    figures = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return GAP.join([name, *figures])
