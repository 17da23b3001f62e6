"""Results of ``cuattn bench`` as tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...bench import ceilings
from ...bench.results import Ceiling, Results
from ...bench.series import Series, end_to_end_tops, shape_of
from ...records.record import Timing
from ..table import Group, Table
from . import rows as bench_rows
from . import speed as bench_speed

__all__ = ["spread", "tables"]


def tables(results: Results) -> Iterator[Table]:
    """Yield a table of each part that was measured."""
    if results.ceilings:
        yield replace(bench_rows.ceilings(results.ceilings), title="the most that this GPU can do")
    for kind, timings in bench_speed.groups(results).items():
        title = (
            f"prefill, {bench_speed.title_of(kind)}: TOPS of the kernel alone, of a call from "
            "float16, and the kernel's % of its ceiling"
        )
        yield _prefill(timings, results.ceilings, title)
    decoding = bench_rows.decoding(results)
    if decoding.groups:
        yield replace(decoding, title="decode: bytes of the cache in the time of a call")
    errors = bench_rows.errors(results)
    if errors.groups:
        yield replace(errors, title="relative L1 error against float64, %")


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


def _prefill(timings: Sequence[Timing], found: Sequence[Ceiling], title: str) -> Table:
    """Return a table with three columns for each length and a row for each implementation."""
    shapes = list(dict.fromkeys(map(shape_of, timings)))
    columns = [column for x in shapes for column in (f"N={x.seqlen_kv}", "call", "%")]
    groups: dict[str, list[tuple[str, list[float | None]]]] = {}
    for series in dict.fromkeys(map(Series.of, timings)):
        at = {shape_of(x): _speeds(x, found) for x in timings if Series.of(x) == series}
        cells = [cell for shape in shapes for cell in at.get(shape, [None] * 3)]
        of_whom = groups.setdefault("cuattn" if series.is_ours else "others", [])
        of_whom.append((bench_rows.name_of(series), cells))
    return Table(columns, [Group(*group) for group in groups.items()], title)


def _speeds(x: Timing, found: Sequence[Ceiling]) -> list[float | None]:
    share = ceilings.share(found, x)
    return [x.tops, end_to_end_tops(x), None if share is None else 100 * share]
