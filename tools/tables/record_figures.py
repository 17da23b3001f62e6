"""Single figures out of a record, and how figures are written in Markdown."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

from cuattn.bench import ceilings
from cuattn.bench.series import Series, end_to_end_tops
from cuattn.records.record import Accuracy, Record, Timing

NONE = "–"
# What stands for a table of which the record has no rows.
NOTHING = "*The record has no such figures.*"
# What a table of goals says of one that is not reached.
MISSED = "**no**"
# How the times of the record were taken.
STATE = "single calls from a cold L2 cache"


class Figures:
    """A record by what its entries are about. What it lacks reads as None.

    Attributes
    ----------
    record : Record
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self._times = {
            (Series.of(t).name, *_sizes(t)): t for t in record.timings if t.is_plain("prefill")
        }
        self._errors = {(a.scheme, a.distribution, *_sizes(a)): a for a in record.accuracy}
        self._of_model = {(a.scheme, a.distribution): a for a in record.accuracy}

    def error(
        self, name: str, distribution: str, head_dim: int = 128, seqlen: int = 4096
    ) -> float | None:
        """Return the relative L1 error of a scheme or baseline, not causal."""
        return self.metric("relative_l1", name, distribution, head_dim, seqlen)

    def metric(
        self, metric: str, name: str, distribution: str, head_dim: int, seqlen: int
    ) -> float | None:
        """Return any metric of the same."""
        return _metric(self._errors.get((name, distribution, head_dim, seqlen, False)), metric)

    def layer(self, scheme: str, layer: int) -> float | None:
        """Return the relative L1 error in a layer of MiniLM."""
        return _metric(self._of_model.get((scheme, f"minilm-layer-{layer}")), "relative_l1")

    def embedding(self, scheme: str) -> float | None:
        """Return 1 - cosine similarity of MiniLM's embedding."""
        cosine = _metric(self._of_model.get((scheme, "minilm-embedding")), "cosine")
        return None if cosine is None else 1 - cosine

    def time(
        self, name: str, head_dim: int, seqlen: int = 4096, causal: bool = False
    ) -> Timing | None:
        """Return the times of a preset or baseline."""
        return self._times.get((name, head_dim, seqlen, causal))

    def tops(
        self, name: str, head_dim: int, seqlen: int = 4096, causal: bool = False
    ) -> tuple[float | None, float | None]:
        """Return the speed of a preset or baseline, kernel only and end to end."""
        t = self.time(name, head_dim, seqlen, causal)
        return (None, None) if t is None else speeds_of(t)

    def faster(
        self, name: str, other: str, head_dim: int, seqlen: int = 4096, causal: bool = False
    ) -> tuple[float | None, float | None]:
        """Return how many times as fast as another one is, kernel only and end to end."""
        mine, theirs = (self.tops(x, head_dim, seqlen, causal) for x in (name, other))
        kernel, end_to_end = (a / b if a and b else None for a, b in zip(mine, theirs, strict=True))
        return kernel, end_to_end

    def share_of_copy(self, timing: Timing) -> float | None:
        """Return a bandwidth over that of the device-to-device copy."""
        copy = next((t.gbps for t in self.record.timings if t.case == "copy"), None)
        return timing.gbps / copy if timing.gbps and copy else None

    def ceiling(self, scheme: str) -> float | None:
        """Return the most that the GPU can do of a scheme's products, in TOPS."""
        return ceilings.tops_of(self.record.ceilings, scheme)

    def share_of_ceiling(self, timing: Timing) -> float | None:
        """Return the speed of a kernel over that."""
        return ceilings.share(self.record.ceilings, timing)

    def first_call(self) -> tuple[float | None, float | None]:
        """Return the most seconds of a first call, from an empty cache on disk and a full one."""
        calls = self.record.first_calls
        return (
            max((call.cold_s for call in calls), default=None),
            max((call.warm_s for call in calls), default=None),
        )


def speeds_of(t: Timing) -> tuple[float | None, float | None]:
    """Return the speeds of a row, kernel only and end to end."""
    if not t.end_to_end_ms:
        return None, None
    if t.tops and t.kernel_ms:
        return t.tops, t.tops * t.kernel_ms / t.end_to_end_ms
    return None, end_to_end_tops(t)


def show(x: float | None, form: str = ".0f", factor: float = 1.0) -> str:
    """Format one figure."""
    return NONE if x is None else format(factor * x, form)


def percent(x: float | None) -> str:
    """Format an error; small ones with a third decimal place."""
    return show(x, ".3f" if x is not None and x < 0.001 else ".2f", 100)


def pair(figures: tuple[float | None, float | None], form: str = ".0f", factor: float = 1.0) -> str:
    """Format two figures as one cell, or one figure if they are the same."""
    first, second = (show(x, form, factor) for x in figures)
    return first if first == second else f"{first} / {second}"


def _goal(
    sign: str,
    reaches: Callable[[float, float], bool],
    what: str,
    wanted: float,
    got: float | None,
    form: str = ".2f",
    factor: float = 1.0,
) -> list[str]:
    """Return one row of a table of goals: what was wanted, measured, and whether that is enough."""
    reached = NONE if got is None else "yes" if reaches(got, wanted) else MISSED
    return [what, f"{sign} {show(wanted, form, factor)}", show(got, form, factor), reached]


at_least = partial(_goal, "≥", operator.ge)
at_most = partial(_goal, "≤", operator.le)


def shape_titles(lengths: list[tuple[int, int]]) -> list[str]:
    """Return the titles of columns for these pairs of head_dim and length."""
    return [f"D {head_dim}, N {seqlen}" for head_dim, seqlen in lengths]


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Return a Markdown table with its first `left` columns flush left, the others right."""
    cells = [header, *rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for row in (header, rule, *rows):
        padded = [
            x.ljust(width) if i < left else x.rjust(width)
            for i, (x, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _sizes(entry: Accuracy | Timing) -> tuple[int, int, bool]:
    return entry.head_dim, entry.seqlen_kv, entry.is_causal


def _metric(entry: Accuracy | None, name: str) -> float | None:
    return entry.metrics[name] if entry else None
