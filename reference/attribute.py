"""How much of a scheme's error each of its four roundings causes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from . import exact
from .arrays import Progress
from .emulate import emulate
from .metrics import metrics
from .quantize import operands
from .rounding import HalfType

__all__ = ["SOURCES", "attribute"]

SOURCES = ("q", "k", "p", "v")


def attribute(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scheme: str | Scheme = "int8",
    scale: float | None = None,
    is_causal: bool = False,
    compute: HalfType | None = None,
    reference: ArrayLike | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Measure the error of a scheme with one of its roundings at a time, then with all of them.

    Each run is the scheme's algorithm, smoothing and scales included, with only Q, only K, only P
    or only V rounded and the others left exact. In first order the squared errors of the four add
    up to that of all.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : array_like of float [batch, num_kv_heads, seqlen_kv, head_dim]
    scheme, scale, is_causal, compute
        As for `emulate.attention`.
    reference : array_like of float [batch, num_q_heads, seqlen_q, head_dim], optional
        The exact output, if it is there already.
    progress : callable, optional
        Called as ``progress(done, total)``; a step is one of the runs.

    Returns
    -------
    dict
        Keys "q", "k", "p", "v" and "all"; values as from `metrics.metrics`.

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other or an option makes no sense.
    """
    scheme = resolve(scheme)
    runs = (*SOURCES, "all")
    total = len(runs) + (reference is None)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    if reference is None:
        reference, _ = exact.attention(q, k, v, scale=scale, is_causal=is_causal)
        step()
    elif np.shape(reference) != (wanted := (*np.shape(q)[:3], *np.shape(v)[3:])):
        raise ArgumentError("reference.shape", np.shape(reference), f"{wanted} as the output")
    errors = {}
    for source in runs:
        untouched = [] if source == "all" else [name for name in SOURCES if name != source]
        ops = operands(q, k, v, scheme, compute=compute, exact=untouched)
        o, _ = emulate(ops, scheme, scale=scale, is_causal=is_causal, round_p="p" not in untouched)
        errors[source] = metrics(o, reference)
        step()
    return errors
