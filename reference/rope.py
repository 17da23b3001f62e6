"""Rotary embedding (RoFormer, arXiv 2104.09864) as kernels compute it, in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from .arrays import Float32Array, as_float32, floating

__all__ = ["rope"]


def rope(
    x: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    positions: ArrayLike,
    *,
    interleaved: bool = False,
) -> Float32Array:
    r"""Turn pairs of channels by the angles of each token's position.

    .. math:: y_1 = x_1 \cos - x_2 \sin, \quad y_2 = x_2 \cos + x_1 \sin

    Products are rounded to float32, and then their sum is: nothing is fused.

    Parameters
    ----------
    x : array_like of float [batch, head, token, head_dim]
    cos, sin : array_like of float [position, pairs]
        Of at most head_dim / 2 pairs; channels beyond ``2 * pairs`` stay what they are.
    positions : array_like of int [batch, token]
        Where the tables have no such position, channels that would turn are NaN.
    interleaved : bool
        Pairs are neighbours, channels 2 i and 2 i + 1, as in GPT-J; else channels i and pairs + i,
        as in GPT-NeoX and Hugging Face's Llama.

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other.
    """
    x = floating("x", x)
    tables = [as_float32(floating(name, t)) for name, t in (("cos", cos), ("sin", sin))]
    for name, table in zip(("cos", "sin"), tables, strict=True):
        if table.ndim != 2 or table.shape != tables[0].shape or not table.size:
            raise ArgumentError(f"{name}.shape", table.shape, "[position, pairs], alike for both")
    count, pairs = tables[0].shape
    if x.ndim != 4 or x.shape[3] < 2 * pairs:
        expected = f"[batch, head, token, head_dim], of {2 * pairs} channels at least"
        raise ArgumentError("x.shape", x.shape, expected)
    at = np.asarray(positions)
    if at.shape != (x.shape[0], x.shape[2]) or at.dtype.kind not in "iu":
        expected = f"whole numbers [batch, token] of x {x.shape}"
        raise ArgumentError("positions", positions, expected)
    inside = (at >= 0) & (at < count)
    of_tokens = (_rows(table, at, inside) for table in tables)
    c, s = (t[:, None] for t in of_tokens)
    turned: Float32Array = as_float32(x).copy()
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if interleaved
        else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x1, x2 = turned[..., first].copy(), turned[..., second].copy()
        turned[..., first] = x1 * c - x2 * s
        turned[..., second] = x2 * c + x1 * s
    return turned


def _rows(
    table: Float32Array, at: NDArray[np.integer], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    found = table[np.where(inside, at, 0)]
    return np.where(inside[..., None], found, np.float32(np.nan))
