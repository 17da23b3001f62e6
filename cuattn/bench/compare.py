"""Two runs of `cuattn bench`: what changed beyond noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..records.rows import shape_of
from . import ours
from .comparison import CEILING, Bound, Change, Comparison, Measure, Row
from .drift import Drift, standard_error
from .results import Results

__all__ = ["ERROR_NOISE", "compare"]

# Kernels give the same bits in each run; this much is for baselines that add up in any order.
ERROR_NOISE = 1e-3


@dataclass(frozen=True)
class _Figure:
    """One median of a run; `seconds` stands for any quantity of which less is better."""

    value: float
    seconds: float
    error: float
    bound: Bound
    is_ours: bool


Key = tuple[Row, Measure]


def compare(old: Results, new: Results) -> Comparison:
    """Match the rows of two runs and tell changes from noise.

    A row's noise has two parts: the standard errors of its two medians, and how far machine and
    clock moved in between, which the spread of unchanged code's ratios shows: baselines, copies and
    ceilings. Their median ratio, the drift, is taken out. What memory bounds and what arithmetic
    bounds drift apart, so each has its own.
    """
    found = Comparison(notes=list(_notes(old, new)))
    before, after = _figures(old), _figures(new)
    both = [key for key in before if key in after]
    bounds: tuple[Bound, ...] = ("arithmetic", "memory")
    for bound in bounds:
        unchanged = [
            after[key].seconds / before[key].seconds
            for key in both
            if before[key].bound == bound and not before[key].is_ours
        ]
        found.drifts[bound] = Drift.of(unchanged)
    for row, measure in both:
        a, b = before[row, measure], after[row, measure]
        drift = found.drifts[a.bound]
        ratio = b.seconds / a.seconds / drift.ratio
        threshold = drift.threshold(a.error, b.error)
        if abs(math.log(ratio)) > threshold:
            found.times.append(Change(row, measure, a.value, b.value, ratio, threshold))
        else:
            found.within += 1
    old_errors, new_errors = _errors(old), _errors(new)
    for row in old_errors:
        if row in new_errors:
            change = _error_change(row, old_errors[row], new_errors[row])
            if change is None:
                found.same_errors += 1
            else:
                found.errors.append(change)
    for changes in (found.times, found.errors):
        changes.sort(key=lambda change: -_size(change.ratio))
    found.only_old = _without(before, after) + [row for row in old_errors if row not in new_errors]
    found.only_new = _without(after, before) + [row for row in new_errors if row not in old_errors]
    return found


def _figures(results: Results) -> dict[Key, _Figure]:
    return dict([*_ceilings(results), *_times(results)])


def _ceilings(results: Results) -> Iterator[tuple[Key, _Figure]]:
    for c in results.ceilings:
        if c.rate > 0:
            error = standard_error(c.rate, c.iqr, results.rounds)
            bound: Bound = "memory" if c.unit == "GB/s" else "arithmetic"
            row = Row(CEILING, c.instruction, c.what, None)
            yield (row, "ceiling"), _Figure(c.rate, 1 / c.rate, error, bound, False)


def _times(results: Results) -> Iterator[tuple[Key, _Figure]]:
    for t in results.timings:
        if t.feature is not None:  # which a `Row` has no place for
            continue
        row = Row(t.case, t.implementation, t.scheme, shape_of(t))
        bound: Bound = "arithmetic" if t.gbps is None else "memory"
        medians: tuple[tuple[Measure, float | None, float | None], ...] = (
            ("kernel", t.kernel_ms, t.kernel_iqr_ms),
            ("end to end", t.end_to_end_ms, t.end_to_end_iqr_ms),
        )
        for measure, ms, iqr in medians:
            # Where the kernel is all there is, both are one measurement.
            if ms and not (measure == "end to end" and ms == t.kernel_ms):
                error = standard_error(ms, iqr, results.rounds)
                yield (row, measure), _Figure(ms, ms, error, bound, t.implementation == ours.NAME)


def _errors(results: Results) -> dict[Row, float]:
    found = {}
    for a in results.accuracy:
        error = a.metrics.get("relative_l1")
        row = Row(a.distribution, "", a.scheme, shape_of(a))
        found[row] = math.inf if error is None else error
    return found


def _error_change(row: Row, old: float, new: float) -> Change | None:
    if old == new:
        return None
    ratio = new / old if old else math.inf
    if abs(ratio - 1) <= ERROR_NOISE:
        return None
    return Change(row, "error", old, new, ratio, ERROR_NOISE)


def _size(ratio: float) -> float:
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def _without(these: Iterable[Key], those: dict[Key, _Figure]) -> list[Row]:
    return list(dict.fromkeys(row for row, measure in these if (row, measure) not in those))


def _notes(old: Results, new: Results) -> Iterator[str]:
    if old.gpu != new.gpu:
        yield f"The GPUs differ: {old.gpu} before, {new.gpu} now. Drift is between these."
    if old.digest == new.digest:
        yield "Kernels and launch code are the same: what differs is the machine or a version."
    for name in sorted(old.versions.keys() | new.versions.keys()):
        was, now = (x.versions.get(name, "not there") for x in (old, new))
        if was != now:
            yield f"{name}: {was} before, {now} now."
