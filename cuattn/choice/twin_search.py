"""Where the two ranges of P meet, searched on given inputs (PTQ4ViT, arXiv 2111.12293)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..common.public import class_naming_keywords, public
from ..errors import ArgumentError
from ..presets import resolve
from ..reference.arrays import Progress
from ..scheme import Scheme
from .calibration import error_reports
from .error_report import ErrorReport

__all__ = ["TwinSearch", "search_twin"]


@class_naming_keywords
@dataclass(frozen=True)
class TwinSearch:
    """The result of a search for `p_split`; `str` shows it as a table.

    Attributes
    ----------
    scheme : Scheme
        With the split of least error.
    table : tuple of (int, float)
        Every split that was tried, and the root of the mean squared error of the output.
    """

    scheme: Scheme
    table: tuple[tuple[int, float], ...]

    def __str__(self) -> str:
        lines = ["p_split        RMSE"]
        for split, error in self.table:
            lines.append(f"{split:7}{error:12.5g}" + "  best" * (split == self.scheme.p_split))
        return "\n".join(lines)


@public
def search_twin(
    q: Any,
    k: Any,
    v: Any,
    *,
    scheme: str | Scheme = "twin",
    splits: Iterable[int] = range(1, 16),
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "HND",
    progress: Progress | None = None,
) -> TwinSearch:
    """Search the `p_split` of a scheme with twin ranges that has the least error on given inputs.

    PTQ4ViT weighs the squared error of a layer's output by the squared gradient of the loss, its
    approximation to the Hessian. One attention call has no loss: the weights are 1 here, which
    leaves the squared error of the output against float64.

    Parameters
    ----------
    q, k, v : array as for `cuattn.measure_error`, or list of them
        Lists are of one length and hold several calls, whose squared errors are summed.
    scheme : str or Scheme
        With ``p_range="twin"``; all but its `p_split` stays.
    splits : iterable of int
        To try; of equally good ones the first is taken.
    scale, is_causal, layout, progress
        As for `cuattn.measure_error`.

    Returns
    -------
    TwinSearch
        Its scheme is named after the split, unless that is the one that it had.

    Raises
    ------
    ArgumentError
        If the scheme has no twin ranges or a split is not from 1 to 15, no split gives finite
        outputs, or as `cuattn.measure_error`.
    UnsupportedError, CompileError
        If the GPU cannot run the scheme.
    """
    scheme = resolve(scheme)
    if scheme.p_range != "twin":
        raise ArgumentError("scheme.p_range", scheme.p_range, "'twin'")
    options: dict[str, Any] = {"scale": scale, "is_causal": is_causal, "layout": layout}
    candidates = [_with_split(scheme, split) for split in splits]
    if not candidates:
        raise ArgumentError("splits", candidates, "at least one")
    reports = error_reports(q, k, v, candidates, **options, progress=progress)
    errors = {candidate: _rmse(found) for candidate, found in reports.items()}
    finite = [candidate for candidate, error in errors.items() if math.isfinite(error)]
    if not finite:
        raise ArgumentError("q", q, "such that outputs are finite")
    best = min(finite, key=lambda candidate: errors[candidate])
    return TwinSearch(best, tuple((x.p_split, error) for x, error in errors.items()))


def _with_split(scheme: Scheme, split: int) -> Scheme:
    if split == scheme.p_split:
        return scheme
    return replace(scheme, name=f"{scheme.name}-{split}", p_split=split)


def _rmse(reports: list[ErrorReport]) -> float:
    """Return the root of the mean squared error of all calls' elements."""
    shapes = [report.shape for report in reports]
    sizes = [x.batch * x.num_q_heads * x.seqlen_q * x.head_dim for x in shapes]
    squares = sum(n * r.metrics["rmse"] ** 2 for n, r in zip(sizes, reports, strict=True))
    return math.sqrt(squares / max(sum(sizes), 1))
