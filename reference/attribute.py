"""How much of a scheme's error each of its four roundings causes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from . import exact
from .arrays import Progress, check_scale
from .emulate import emulate
from .masking import UNLIMITED
from .metrics import metrics
from .quantize import Quantized, operands
from .rounding import HalfType
from .smoothing import lse_shift

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
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
    softcap: float = 0.0,
    sinks: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
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
    scheme, scale, is_causal, window_size, softcap, sinks, attn_mask, alibi_slopes, compute
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
    options: dict[str, Any] = {
        "is_causal": is_causal,
        "window_size": window_size,
        "softcap": softcap,
        "sinks": sinks,
        "attn_mask": attn_mask,
        "alibi_slopes": alibi_slopes,
    }
    runs = (*SOURCES, "all")
    total = len(runs) + (reference is None)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    if reference is None:
        reference, _ = exact.attention(q, k, v, scale=scale, **options)
        step()
    elif np.shape(reference) != (wanted := (*np.shape(q)[:3], *np.shape(v)[3:])):
        raise ArgumentError("reference.shape", np.shape(reference), f"{wanted} as the output")
    errors = {}
    for source in runs:
        untouched = [] if source == "all" else [name for name in SOURCES if name != source]
        ops = operands(q, k, v, scheme, compute=compute, exact=untouched)
        vector = ops.k.vector if isinstance(ops.k, Quantized) else None
        shift = lse_shift(q, vector, check_scale(scale, ops.shape.head_dim))
        rounds_p = "p" not in untouched
        o, _ = emulate(ops, scheme, scale=scale, **options, lse_shift=shift, round_p=rounds_p)
        errors[source] = metrics(o, reference)
        step()
    return errors
