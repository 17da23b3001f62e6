"""The fastest scheme whose error on given inputs is within a bound."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.public import class_naming_keywords, public
from ..errors import ArgumentError
from ..presets import PRESETS
from ..reference.arrays import Progress
from ..scheme import Scheme
from .calibration import error_reports
from .error_report import ErrorReport

__all__ = ["SPEED_ORDER", "Candidate", "Choice", "choose_scheme", "speed_rank"]

# The presets from fastest to slowest, for where no time can be taken: calls with 4096 tokens and
# 128 channels on an H200, quantization included.
SPEED_ORDER = (
    "int8-fast",
    "int8-block",
    "int8-fp8",
    "fp8",
    "sage-vb",
    "int8",
    "fp16",
    "int8-token",
    "int-flash-half",
    "sage-b",
    "int8-fp16",
    "sage-t",
    "int-flash-int4",
    "int-flash",
    "sage2-4",
    "sage2-8",
    "sage-vt",
    "int4",
    "int-flash-rotated",
    "int4-fp16",
    "twin",
    "int8-two-term",
)
_RANKS = {PRESETS[name]: rank for rank, name in enumerate(SPEED_ORDER)}


@dataclass(frozen=True)
class Candidate:
    """What one scheme makes of the calibration inputs.

    Attributes
    ----------
    scheme : Scheme
    cosine : float
        Cosine similarity to float64: the least of all calls.
    relative_l1 : float
        The largest of all calls.
    milliseconds : float or None
        Of all calls together on the GPU, quantization included; None if they were emulated.
    """

    scheme: Scheme
    cosine: float
    relative_l1: float
    milliseconds: float | None

    @classmethod
    def of(cls, scheme: Scheme, reports: list[ErrorReport]) -> Candidate:
        """Summarize the reports of a scheme's calls; a NaN in any stays one."""
        seconds = [report.seconds for report in reports if report.seconds is not None]
        return cls(
            scheme,
            float(np.min([report.metrics["cosine"] for report in reports])),
            float(np.max([report.metrics["relative_l1"] for report in reports])),
            1e3 * sum(seconds) if len(seconds) == len(reports) else None,
        )


@class_naming_keywords
@dataclass(frozen=True)
class Choice:
    """A scheme, and the table by which it was chosen; `str` shows it.

    Attributes
    ----------
    scheme : Scheme
        The fastest within the bounds.
    table : tuple of Candidate
        All that were compared, the fastest first.
    min_cosine : float
    max_relative_l1 : float or None
        The bounds.
    timed : bool
        Whether the order is that of times taken here; else that of `SPEED_ORDER`.
    """

    scheme: Scheme
    table: tuple[Candidate, ...]
    min_cosine: float
    max_relative_l1: float | None
    timed: bool

    def __str__(self) -> str:
        bound = f"cosine similarity of at least {self.min_cosine:g}"
        if self.max_relative_l1 is not None:
            bound += f" and relative L1 error of at most {100 * self.max_relative_l1:g} %"
        ranked = "" if self.timed else " (speeds as ranked on an H200)"
        width = max(len(x.scheme.name) for x in self.table)
        lines = [
            f"{self.scheme.name} is the fastest with a {bound}{ranked}",
            f"  {'':{width}}    cosine      L1 %        ms",
        ]
        for x in self.table:
            time = "-" if x.milliseconds is None else f"{x.milliseconds:#.4g}"
            figures = f"{x.cosine:10.6f}{100 * x.relative_l1:10.4f}{time:>10}"
            chosen = "  chosen" if x.scheme == self.scheme else ""
            lines.append(f"  {x.scheme.name:{width}}{figures}{chosen}")
        return "\n".join(lines)


@public
def choose_scheme(
    q: Any,
    k: Any,
    v: Any,
    *,
    min_cosine: float = 0.998,
    schemes: str | Scheme | Iterable[str | Scheme] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "HND",
    max_relative_l1: float | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Choose the fastest scheme whose error on calibration inputs is within the bounds.

    This is SageAttention's adaptive quantization (arXiv 2410.02367), whose bound of 0.998 is the
    default, for any set of schemes.

    Parameters
    ----------
    q, k, v : array as for `cuattn.measure_error`, or list of them
        Lists are of one length and hold several calls, as those of some time steps of one layer:
        the largest error of any counts.
    min_cosine : float
        Least cosine similarity to attention in float64, from 0 to 1.
    schemes : str or Scheme, or iterable of them, optional
        Candidates; by default all presets that can run here.
    scale, is_causal, layout, progress
        As for `cuattn.measure_error`.
    max_relative_l1 : float, optional
        Largest relative L1 error, as a second bound.

    Returns
    -------
    Choice
        Where candidates cannot be timed, because there is no GPU, their order is that of
        `SPEED_ORDER`; schemes that are not presets come last, as they are given.

    Raises
    ------
    ArgumentError
        If no candidate is within the bounds, saying what would be, or as `cuattn.measure_error`.
    UnsupportedError, CompileError
        If the GPU cannot run a scheme that was given.
    """
    if not 0 <= min_cosine <= 1:
        raise ArgumentError("min_cosine", min_cosine, "from 0 to 1")
    if max_relative_l1 is not None and not max_relative_l1 >= 0:
        raise ArgumentError("max_relative_l1", max_relative_l1, "at least 0")
    options: dict[str, Any] = {"scale": scale, "is_causal": is_causal, "layout": layout}
    reports = error_reports(q, k, v, schemes, **options, progress=progress)
    table = [Candidate.of(scheme, found) for scheme, found in reports.items()]
    timed = all(x.milliseconds is not None for x in table)
    table.sort(key=_time if timed else lambda x: speed_rank(x.scheme))
    most = math.inf if max_relative_l1 is None else max_relative_l1
    chosen = _first_within(table, min_cosine, most)
    return Choice(chosen.scheme, tuple(table), min_cosine, max_relative_l1, timed)


def _time(candidate: Candidate) -> float:
    return candidate.milliseconds or math.inf


def _first_within(table: list[Candidate], min_cosine: float, max_relative_l1: float) -> Candidate:
    """Return the first candidate within both bounds; a NaN is within none."""
    if all(math.isnan(x.cosine) for x in table):
        names = [x.scheme.name for x in table]
        raise ArgumentError("schemes", names, "such that outputs of one are finite")
    similar = [x for x in table if x.cosine >= min_cosine]
    if not similar:
        best = max(table, key=lambda x: x.cosine if x.cosine == x.cosine else -math.inf)
        raise ArgumentError(
            "min_cosine", min_cosine, f"at most {best.cosine}, that of {best.scheme.name}"
        )
    for x in similar:
        if x.relative_l1 <= max_relative_l1:
            return x
    best = min(similar, key=lambda x: x.relative_l1)
    raise ArgumentError(
        "max_relative_l1",
        max_relative_l1,
        f"at least {best.relative_l1}, that of {best.scheme.name}",
    )


def speed_rank(scheme: Scheme) -> int:
    """Return a preset's place, 0 for the fastest; schemes that are not presets come after all."""
    return _RANKS.get(scheme, len(_RANKS))
