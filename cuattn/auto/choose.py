"""Which preset `scheme="auto"` is in a call: read from a table, nothing is timed."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import numpy as np

from ..arrays.device import current_device
from ..common.public import class_naming_keywords, public
from ..errors import ArgumentError
from ..presets import AUTO
from ..records.rows import Shape
from ..reference import arrays
from ..reference.layout import pad_head_dim
from .table import SpeedRow
from .tables import ANEW, Found, origin_of, shipped, table_for

__all__ = ["AutoChoice", "auto_scheme", "choose"]

# By so much a quantized scheme must have been faster than float16: medians vary by less.
MARGIN = 0.02
# Between measured shapes a scheme must have been faster at so many of the nearest.
NEIGHBOURS = 2


@class_naming_keywords
@dataclass(frozen=True)
class AutoChoice:
    """What `scheme="auto"` is in a call, and why.

    Attributes
    ----------
    scheme : str
        A key of `cuattn.PRESETS`.
    reason : str
        A sentence.
    rows : tuple of SpeedRow
        The measured shapes that it was chosen by: one that is the call's, or the nearest; ``us``
        has the microseconds of each candidate. Empty if there is no table, or none as small.
    """

    scheme: str
    reason: str
    rows: tuple[SpeedRow, ...] = ()

    def __str__(self) -> str:
        return f"{self.scheme}: {self.reason}"


@public
def auto_scheme(
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...] | None = None,
    *,
    is_causal: bool = False,
    scheme: str = "auto",
    layout: str = "HND",
    gpu: str | None = None,
) -> AutoChoice:
    """Say which preset a call of `cuattn.attention` with ``scheme="auto"`` computes, and why.

    Parameters
    ----------
    q_shape : tuple of int
        [batch, num_q_heads, seqlen_q, head_dim], with layout "NHD" tokens before heads.
    k_shape : tuple of int, optional
        [batch, num_kv_heads, seqlen_kv, head_dim], or likewise; `q_shape` by default.
    is_causal, layout
        As for `cuattn.attention`.
    scheme : {"auto", "auto-block"}
    gpu : str, optional
        Name of a GPU whose table comes with the package, such as "NVIDIA H200", for which no GPU
        is needed; by default CuPy's current one.

    Returns
    -------
    AutoChoice

    Raises
    ------
    ArgumentError
        If an argument is wrong, or there is no such table.
    NoGPUError, UnsupportedError
        If there is no GPU that has kernels, and `gpu` is not given.
    """
    if not isinstance(scheme, str) or scheme not in AUTO:
        raise ArgumentError("scheme", scheme, f"one of {[*AUTO]}")
    if not isinstance(layout, str) or layout not in ("HND", "NHD"):
        raise ArgumentError("layout", layout, "'HND' or 'NHD'")
    if not isinstance(is_causal, (bool, np.bool_)):
        raise ArgumentError("is_causal", is_causal, "True or False")
    q, k = (_in_order(x, layout) for x in (q_shape, q_shape if k_shape is None else k_shape))
    sizes = arrays.Shape.of(q, k, k)
    call = Shape(**vars(sizes), is_causal=bool(is_causal))
    if gpu is None:
        return choose(call, scheme, table_for(current_device()))
    for table in shipped():
        if table.gpu == gpu:
            return choose(call, scheme, Found(table, origin_of(table)))
    names = [table.gpu for table in shipped()]
    raise ArgumentError("gpu", gpu, f"one that a table comes with: {names}")


def choose(call: Shape, name: str, found: Found | None) -> AutoChoice:
    """Return the fastest candidate for a call by a table.

    What was not measured is float16: of a GPU without a table, a head dimension that the table does
    not have, and calls that are smaller than all of its shapes.

    Parameters
    ----------
    call : Shape
    name : str
        One of `AUTO`.
    found : Found or None
    """
    base, *others = AUTO[name]
    if found is None:
        return AutoChoice(base, f"nothing was measured on such a GPU; `{ANEW}` does so")
    call = replace(call, head_dim=pad_head_dim(call.head_dim))
    alike = [row for row in found.table.rows if _kind(row) == _kind(call) and row.reaches(call)]
    near = sorted(alike, key=lambda row: row.distance(call))[:NEIGHBOURS]
    if not near:
        return AutoChoice(base, f"{found.origin} has no shape of such a call that is as small")
    rows = tuple(near if near[0].distance(call) else near[:1])
    shares = {x: max(row.us[x] / row.us[base] for row in rows) for x in others}
    best = min(shares, key=lambda x: shares[x])
    if shares[best] > 1 - MARGIN:
        best = base
    times = ", ".join(f"{rows[0].us[x]:.0f} us with {x!r}" for x in AUTO[name])
    return AutoChoice(best, f"{times} at {_shown(rows[0])}, by {found.origin}", rows)


def _in_order(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return a shape as [batch, head, token, head_dim]."""
    expected = "four whole numbers of at least 1, of which the last is a multiple of 8 up to 512"
    try:
        sizes = [-1 if isinstance(x, bool) else operator.index(x) for x in shape]
    except TypeError:
        raise ArgumentError("shape", shape, expected) from None
    if len(sizes) != 4 or min(sizes) < 1 or sizes[3] % 8 or sizes[3] > 512:
        raise ArgumentError("shape", shape, expected)
    batch, a, b, head_dim = sizes
    return (batch, b, a, head_dim) if layout == "NHD" else (batch, a, b, head_dim)


def _kind(shape: Shape) -> tuple[int, bool]:
    return shape.head_dim, shape.is_causal


def _shown(row: SpeedRow) -> str:
    heads = f"{row.batch} x {row.num_q_heads} heads over {row.num_kv_heads}"
    tokens = f"{row.seqlen_q} tokens over {row.seqlen_kv}"
    return f"{heads}, {tokens}, head_dim {row.head_dim}{', causal' * row.is_causal}"
