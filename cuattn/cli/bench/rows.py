"""All figures of ``cuattn bench``, with spreads, as tables of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...bench.ceilings import share
from ...bench.results import Ceiling, Results
from ...bench.series import Series, by_shape, end_to_end_tops, shape_of
from ...records.record import Timing
from ..table import Group, Table
from . import decode as bench_decode
from . import speed as bench_speed
from .names import shape_name

__all__ = ["ceilings", "decoding", "errors", "name_of", "speeds"]

SPEEDS = ("kernel ms", "spread %", "TOPS", "% of ceiling", "end to end ms", "spread %", "TOPS")
DECODING = ("ms", "spread %", "GB/s", "% of copy", "times float16")


def ceilings(found: Sequence[Ceiling]) -> Table:
    """Return rates and spreads, by unit."""
    rows: dict[str, list[tuple[str, list[float | None]]]] = {}
    for c in found:
        figures = [c.rate, _spread(c.rate, c.iqr)]
        rows.setdefault(c.unit, []).append((f"{c.what}, {c.instruction}", figures))
    groups = [Group(unit, of_unit) for unit, of_unit in rows.items()]
    return Table(["rate", "spread %"], groups)


def speeds(results: Results) -> Iterator[Table]:
    """Yield a table for each head dimension and mask, with a group for each length."""
    for group, timings in bench_speed.groups(results).items():
        found = by_shape(timings)
        yield Table(
            SPEEDS,
            [
                Group(
                    shape_name(shape),
                    [_speed(results, t) for t in found[shape].values()],
                )
                for shape in sorted(found, key=lambda s: (s.seqlen_kv, s.batch))
            ],
            bench_speed.title_of(group),
        )


def decoding(results: Results) -> Table:
    """Return the times of decoding, by shape."""
    groups = []
    copy = bench_decode.copy_gbps(results)
    for shape, times in bench_decode.rows(results).items():
        gains = bench_decode.speedups(times)
        rows: list[tuple[str, list[float | None]]] = []
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
    return Table(DECODING, groups)


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
    return Table(columns, groups)


def _speed(results: Results, t: Timing) -> tuple[str, list[float | None]]:
    of_ceiling = share(results.ceilings, t)
    return name_of(Series.of(t)), [
        t.kernel_ms,
        _spread(t.kernel_ms, t.kernel_iqr_ms),
        t.tops,
        _percent(of_ceiling),
        t.end_to_end_ms,
        _spread(t.end_to_end_ms, t.end_to_end_iqr_ms),
        end_to_end_tops(t),
    ]


def name_of(series: Series) -> str:
    """Return what a row of times is called: our scheme, or the baseline and its scheme."""
    return series.name if series.is_ours else f"{series.name}, {series.scheme}"


def _spread(median: float | None, iqr: float | None) -> float | None:
    """Return an inter-quartile range in percent of the median."""
    return 100 * iqr / median if median and iqr is not None else None


def _percent(x: float | None) -> float | None:
    return None if x is None else 100 * x
