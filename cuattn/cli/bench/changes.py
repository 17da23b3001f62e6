"""What changed between two runs of ``cuattn bench``, as tables and in a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...bench.comparison import Change, Comparison, Row
from ..table import Group, Table, number
from .look import row_name

__all__ = ["ERRORS", "drifts", "lacking", "summary", "tables", "text"]

# Rows that a terminal is shown of each table, and names of rows that one run lacks.
SHOWN, NAMED = 30, 4

TIMES, ERRORS = "times and ceilings", "relative L1 errors, %"
TITLES = {
    "kernel": "times of kernels, ms",
    "end to end": "times end to end, ms",
    "ceiling": "ceilings, TOPS or GB/s",
}


def text(comparison: Comparison) -> str:
    """Return all that a terminal shows: notes, what changed, and a summary in the last line."""
    shown = [str(_shortened(table)) for table in tables(comparison)]
    lines = [*comparison.notes, *drifts(comparison), *lacking(comparison), summary(comparison)]
    return "\n\n".join([*shown, "\n".join(lines)])


def tables(comparison: Comparison) -> list[Table]:
    """Return tables of the times and the errors that changed, the most changed first."""
    found = []
    groups = [
        Group(title, [_row(change) for change in comparison.times if change.measure == measure])
        for measure, title in TITLES.items()
    ]
    columns = ["before", "now", "time %", "noise ±%"]
    if comparison.times:
        filled = [group for group in groups if group.rows]
        found.append(Table(columns, filled, TIMES))
    if comparison.errors:
        rows = [
            (row_name(c.row), [100 * c.old, 100 * c.new, 100 * (c.ratio - 1)])
            for c in comparison.errors
        ]
        found.append(Table(["before", "now", "change %"], [Group("", rows)], ERRORS))
    return found


def drifts(comparison: Comparison) -> Iterator[str]:
    """Yield a sentence for what arithmetic bounds, and one for what memory does."""
    for bound, drift in comparison.drifts.items():
        least = f"{number(100 * drift.threshold())} %"
        rows = f"unchanged code that is bound by {bound} ({drift.count} rows)"
        if drift.is_known:
            moved = round(100 * (drift.ratio - 1), 1) + 0.0  # not -0.0
            yield (
                f"The time of {rows} moved by {moved:+.1f} %. This drift is "
                f"taken out; a change is more than {least} from there."
            )
        else:
            yield f"Too little {rows} to see a drift; a change is more than {least}."


def lacking(comparison: Comparison) -> Iterator[str]:
    """Yield a sentence for each run that has rows which the other lacks."""
    for rows, where in ((comparison.only_old, "before"), (comparison.only_new, "now")):
        if rows:
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            yield f"Only {where}: {_names(rows[:NAMED])}{more}."


def summary(comparison: Comparison) -> str:
    """Return the counts."""
    c = comparison
    errors = f"{len(c.errors)} of {len(c.errors) + c.same_errors} errors changed"
    return f"{c.faster} faster, {c.slower} slower, {c.within} within noise; {errors}."


def _row(change: Change) -> tuple[str, list[float | None]]:
    figures = [change.old, change.new, 100 * (change.ratio - 1), 100 * change.threshold]
    return row_name(change.row), list(figures)


def _names(rows: Sequence[Row]) -> str:
    return "; ".join(map(row_name, rows))


def _shortened(table: Table) -> Table:
    groups = []
    for group in table.groups:
        rest = len(group.rows) - SHOWN
        title = f"{group.title} (and {rest} that changed less)" if rest > 0 else group.title
        groups.append(Group(title.strip(), group.rows[:SHOWN]))
    return replace(table, groups=groups)
