"""Figures in aligned columns, in groups with a title each."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Group", "Row", "Table", "number", "render"]

GAP = "  "
INDENT = "  "

# A name and one figure for each column; None where there is none.
Row = tuple[str, Sequence[float | None]]


@dataclass(frozen=True)
class Group:
    """Rows of a table that belong together.

    Attributes
    ----------
    title : str
        Written above them.
    rows : sequence of Row
    """

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """Groups of rows under common column titles; `str` lays it out.

    Attributes
    ----------
    columns : sequence of str
    groups : sequence of Group
    title : str
        Empty if the groups say enough.
    better : sequence of {"less", "more", None}
        For each column, which figures are the better ones; none for all columns if empty.
    aside : collection of str
        Rows that do not count when the best are looked for.
    """

    columns: Sequence[str]
    groups: Sequence[Group]
    title: str = ""
    better: Sequence[str | None] = ()
    aside: Collection[str] = ()

    def __str__(self) -> str:
        return f"{self.title}\n" * bool(self.title) + render(self.columns, self.groups)

    def best(self, group: Group) -> list[float | None]:
        """Return the best figure of each column in a group; None where nothing competes."""
        found: list[float | None] = []
        for i, better in enumerate(self.better):
            of_rows = (figures[i] for name, figures in group.rows if name not in self.aside)
            figures = [x for x in of_rows if x is not None and math.isfinite(x)]
            choose = {"less": min, "more": max}.get(better or "")
            found.append(choose(figures) if choose and len(figures) > 1 else None)
        return found or [None] * len(self.columns)


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
