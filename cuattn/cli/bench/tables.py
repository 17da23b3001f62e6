"""All figures of ``cuattn bench`` as tables: those of a terminal, and those of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...bench.ceilings import share
from ...bench.results import Ceiling, Results
from ...bench.series import Series, by_shape, end_to_end_tops
from ...records.rows import Timing, shape_of
from ..table import Group, Row, Table
from . import decode, speed
from .look import name_of, shape_name

__all__ = ["ceilings", "decoding", "errors", "speeds", "spread", "tables"]

SPEEDS = {
    "kernel ms": "less",
    "kernel spread %": None,
    "kernel TOPS": "more",
    "% of ceiling": "more",
    "call ms": "less",
    "call spread %": None,
    "call TOPS": "more",
}
DECODING = {
    "ms": "less",
    "spread %": None,
    "GB/s": "more",
    "% of copy": "more",
    "times float16": "more",
}


def tables(results: Results) -> Iterator[Table]:
    """Yield a table of each part that was measured, as a terminal has room for."""
    if results.ceilings:
        yield replace(ceilings(results.ceilings), title="the most that this GPU can do")
    for kind, timings in speed.groups(results).items():
        title = (
            f"prefill, {speed.title_of(kind)}: TOPS of the kernel alone, of a call from "
            "float16, and the kernel's % of its ceiling"
        )
        yield _prefill(timings, results.ceilings, title)
    decoded = decoding(results)
    if decoded.groups:
        yield replace(decoded, title="decode: bytes of the cache in the time of a call")
    wrong = errors(results)
    if wrong.groups:
        yield replace(wrong, title="relative L1 error against float64, %")


def spread(results: Results) -> str:
    """Say in a line how far the rounds of a time are apart; empty if there are no times."""
    pairs = [(x.kernel_ms, x.kernel_iqr_ms) for x in results.timings]
    pairs += [(x.end_to_end_ms, x.end_to_end_iqr_ms) for x in results.timings]
    ranges = [100 * iqr / ms for ms, iqr in pairs if ms and iqr is not None]
    if not ranges:
        return ""
    return (
        f"Times are medians of {results.rounds} rounds, with inter-quartile ranges of "
        f"{np.median(ranges):.1f} % in the middle and {max(ranges):.1f} % at most."
    )


def ceilings(found: Sequence[Ceiling]) -> Table:
    """Return rates and spreads, by unit."""
    rows: dict[str, list[Row]] = {}
    for c in found:
        figures = [c.rate, _spread(c.rate, c.iqr)]
        rows.setdefault(c.unit, []).append((f"{c.what}, {c.instruction}", figures))
    groups = [Group(unit, of_unit) for unit, of_unit in rows.items()]
    return Table(["rate", "spread %"], groups)


def speeds(results: Results) -> Iterator[Table]:
    """Yield a table for each head dimension and mask, with a group for each length."""
    for group, timings in speed.groups(results).items():
        found = by_shape(timings)
        shapes = sorted(found, key=lambda s: (s.seqlen_kv, s.batch))
        groups = [
            Group(shape_name(shape), [_speed(results, t) for t in found[shape].values()])
            for shape in shapes
        ]
        yield Table([*SPEEDS], groups, speed.title_of(group), [*SPEEDS.values()])


def decoding(results: Results) -> Table:
    """Return the times of decoding, by shape."""
    groups = []
    copy = decode.copy_gbps(results)
    for shape, times in decode.rows(results).items():
        gains = decode.speedups(times)
        rows: list[Row] = []
        for series, t in times.items():
            of_copy = 100 * t.gbps / copy if copy and t.gbps else None
            figures = [
                t.kernel_ms,
                _spread(t.kernel_ms, t.kernel_iqr_ms),
                t.gbps,
                of_copy,
                gains.get(series),
            ]
            rows.append((name_of(series), figures))
        groups.append(Group(shape_name(shape), rows))
    return Table([*DECODING], groups, better=[*DECODING.values()])


def errors(results: Results) -> Table:
    """Return relative L1 errors in percent, a column for each distribution, by shape."""
    columns = list(dict.fromkeys(a.distribution for a in results.accuracy))
    groups = []
    for shape in dict.fromkeys(map(shape_of, results.accuracy)):
        found: dict[str, dict[str, float | None]] = {}
        for a in results.accuracy:
            if shape_of(a) == shape:
                found.setdefault(a.scheme, {})[a.distribution] = a.metrics.get("relative_l1")
        rows = [(name, [_percent(row.get(c)) for c in columns]) for name, row in found.items()]
        groups.append(Group(shape_name(shape), rows))
    return Table(columns, groups, better=["less"] * len(columns))


def _prefill(timings: Sequence[Timing], found: Sequence[Ceiling], title: str) -> Table:
    """Return a table with three columns for each length and a row for each implementation."""
    shapes = list(dict.fromkeys(map(shape_of, timings)))
    columns = [column for x in shapes for column in (f"N={x.seqlen_kv}", "call", "%")]
    groups: dict[str, list[Row]] = {}
    for series in dict.fromkeys(map(Series.of, timings)):
        at = {
            shape_of(x): [x.tops, end_to_end_tops(x), _percent(share(found, x))]
            for x in timings
            if Series.of(x) == series
        }
        cells = [cell for shape in shapes for cell in at.get(shape, [None] * 3)]
        of_whom = groups.setdefault("cuattn" if series.is_ours else "others", [])
        of_whom.append((name_of(series), cells))
    return Table(columns, [Group(*group) for group in groups.items()], title)


def _speed(results: Results, t: Timing) -> Row:
    return name_of(Series.of(t)), [
        t.kernel_ms,
        _spread(t.kernel_ms, t.kernel_iqr_ms),
        t.tops,
        _percent(share(results.ceilings, t)),
        t.end_to_end_ms,
        _spread(t.end_to_end_ms, t.end_to_end_iqr_ms),
        end_to_end_tops(t),
    ]


def _spread(median: float | None, iqr: float | None) -> float | None:
    """Return an inter-quartile range in percent of the median."""
    return 100 * iqr / median if median and iqr is not None else None


def _percent(x: float | None) -> float | None:
    return None if x is None else 100 * x
