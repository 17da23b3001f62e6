"""Calls of attention with known inputs, and the errors that schemes make in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..arrays.host import heads_first, to_host
from ..errors import ArgumentError, UnsupportedError
from ..plan.kernels import runnable
from ..presets import resolve
from ..reference import exact
from ..reference.arrays import Progress
from ..scheme import Scheme
from .error_report import ErrorReport
from .measure import measure_error
from .stages import Stages

__all__ = ["error_reports"]


def error_reports(
    q: Any,
    k: Any,
    v: Any,
    schemes: Iterable[str | Scheme] | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "HND",
    progress: Progress | None = None,
) -> dict[Scheme, list[ErrorReport]]:
    """Measure schemes on one call or several, each compared with float64 that is computed once.

    Parameters
    ----------
    q, k, v : array as for `cuattn.measure_error`, or list of them
        Lists are of one length: one element for each call.
    schemes : iterable of str or Scheme, optional
        By default all presets that the GPU can run with inputs of these sizes; without one, all.
    scale, is_causal, layout, progress
        As for `cuattn.measure_error`.

    Returns
    -------
    dict of Scheme to list of ErrorReport
        One report for each call.

    Raises
    ------
    ArgumentError
        If there is no scheme or no call, lists differ in length, or arrays do not fit.
    UnsupportedError, CompileError
        If the GPU cannot run a scheme that was given.
    """
    calls = _calls(q, k, v)
    candidates = list(dict.fromkeys(map(resolve, runnable() if schemes is None else schemes)))
    if not candidates:
        raise ArgumentError("schemes", candidates, "at least one scheme")
    stages = Stages(progress, len(calls) * (1 + len(candidates)))
    reports: dict[Scheme, list[ErrorReport]] = {scheme: [] for scheme in candidates}
    for arrays in calls:
        values = [
            heads_first(to_host(x, name).values, layout)
            for name, x in zip("qkv", arrays, strict=True)
        ]
        options: dict[str, Any] = {"scale": scale, "is_causal": is_causal}
        reference, _ = exact.attention(*values, **options, progress=stages.next())
        options |= {"layout": layout, "by_source": False, "reference": reference}
        for scheme in list(reports):
            step = stages.next()
            try:
                report = measure_error(*arrays, scheme=scheme, progress=step, **options)
            except UnsupportedError:
                if schemes is not None:
                    raise
                del reports[scheme]
            else:
                reports[scheme].append(report)
    return reports


def _calls(q: Any, k: Any, v: Any) -> list[tuple[Any, Any, Any]]:
    """Bring arrays, or lists of arrays, to a list of (q, k, v)."""
    given = {"q": q, "k": k, "v": v}
    lists = {name: x if isinstance(x, (list, tuple)) else [x] for name, x in given.items()}
    for name, x in lists.items():
        if isinstance(given[name], (list, tuple)) is not isinstance(q, (list, tuple)):
            raise ArgumentError(name, given[name], "an array, or a list if q is one")
        if len(x) != len(lists["q"]) or not x:
            raise ArgumentError(f"len({name})", len(x), "at least 1, and as many as there are of q")
    return list(zip(*lists.values(), strict=True))
