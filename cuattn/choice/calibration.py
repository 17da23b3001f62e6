"""Calls of attention with known inputs, and the errors that schemes make in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import heads_first, to_host
from ..errors import ArgumentError, UnsupportedError
from ..plan.kernels import runnable
from ..presets import resolve
from ..reference import exact
from ..reference.arrays import Progress
from ..scheme import Scheme
from .error_report import ErrorReport
from .measure import measure_error
from .progress import Stages

__all__ = ["candidates", "check_finite", "error_reports"]


def error_reports(
    q: Any,
    k: Any,
    v: Any,
    schemes: str | Scheme | Iterable[str | Scheme] | None = None,
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
    schemes : str or Scheme, or iterable of them, optional
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
        If there is no scheme or no call, lists differ in length, or arrays do not fit or have an
        element that is not finite; names the first such.
    UnsupportedError, CompileError
        If the GPU cannot run a scheme that was given.
    """
    calls = _calls(q, k, v)
    chosen = candidates(runnable() if schemes is None else schemes)
    stages = Stages(progress, len(calls) * (1 + len(chosen)))
    reports: dict[Scheme, list[ErrorReport]] = {scheme: [] for scheme in chosen}
    for i, arrays in enumerate(calls):
        values = []
        for name, x in zip("qkv", arrays, strict=True):
            found = to_host(x, name).values
            check_finite(f"{name}[{i}]" if isinstance(q, (list, tuple)) else name, found)
            values.append(heads_first(found, layout))
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


def candidates(schemes: str | Scheme | Iterable[str | Scheme]) -> list[Scheme]:
    """Return schemes without repetitions; a single one, or its name, stands for itself.

    Raises
    ------
    ArgumentError
        If there is none, or one is neither a scheme nor the name of one.
    """
    if isinstance(schemes, (str, Scheme)):
        schemes = [schemes]
    elif not isinstance(schemes, Iterable):
        raise ArgumentError("schemes", schemes, "schemes or names of schemes")
    found = list(dict.fromkeys(map(resolve, schemes)))
    if not found:
        raise ArgumentError("schemes", found, "at least one scheme")
    return found


def check_finite(name: str, x: NDArray[np.floating]) -> None:
    """Refuse an array with a NaN or an infinity, whose result no scheme could be measured by.

    Raises
    ------
    ArgumentError
        Names the array and the position of the first.
    """
    finite = np.isfinite(x)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), x.shape)
        position = ", ".join(map(str, map(int, first)))
        raise ArgumentError(f"{name}[{position}]", float(x[first]), "a finite number")


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
