"""Types, sizes and checks that every module of the reference shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError

__all__ = [
    "Float32Array",
    "FloatArray",
    "Progress",
    "Shape",
    "as_float32",
    "check_scale",
    "floating",
    "spans",
    "whole_counts",
    "whole_numbers",
]

FloatArray: TypeAlias = NDArray[np.float64]
Float32Array: TypeAlias = NDArray[np.float32]
# Called with (steps done, steps in all).
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention call with arrays [batch, head, token, head_dim].

    `head_dim` is that of Q and K; V and the output may have another one.
    """

    batch: int
    num_q_heads: int
    num_kv_heads: int
    seqlen_q: int
    seqlen_kv: int
    head_dim: int

    @staticmethod
    def of(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> Shape:
        """Read the sizes off the shapes of Q, K and V.

        Raises
        ------
        ArgumentError
            If a shape does not have four axes or does not fit the others.
        """
        for name, shape in (("q", q), ("k", k), ("v", v)):
            if len(shape) != 4:
                raise ArgumentError(f"{name}.shape", shape, "[batch, head, token, head_dim]")
        if k[:3] != v[:3]:
            raise ArgumentError("v.shape", v, f"the shape {k} of k, but for the last axis")
        if (k[0], k[3]) != (q[0], q[3]):
            raise ArgumentError("k.shape", k, f"[{q[0]}, head, token, {q[3]}] to fit q {q}")
        if q[3] == 0:
            raise ArgumentError("q.shape", q, "of a head_dim of at least 1")
        if v[3] == 0:
            raise ArgumentError("v.shape", v, "of a head_dim of at least 1")
        if q[1] != k[1] and (k[1] == 0 or q[1] % k[1] != 0):
            raise ArgumentError("q.shape", q, f"of a number of heads that the {k[1]} of k divide")
        return Shape(q[0], q[1], k[1], q[2], k[2], q[3])

    @property
    def group(self) -> int:
        """Query heads that read the same head of K and V."""
        return self.num_q_heads // max(self.num_kv_heads, 1)


def floating(name: str, x: ArrayLike) -> NDArray[np.floating]:
    """Return `x` as an array of a floating-point type; bfloat16 (of `ml_dtypes`) is one.

    Raises
    ------
    ArgumentError
        If it has another type.
    """
    array = np.asarray(x)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ArgumentError(f"{name}.dtype", array.dtype.name, "a floating-point type")
    return array


def as_float32(x: NDArray[np.floating]) -> Float32Array:
    """Round to float32, in which the quantizers compute; what is too large becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float32)


def check_scale(scale: float | None, head_dim: int) -> float:
    """Return the factor of the logits, by default ``1/sqrt(head_dim)``.

    Raises
    ------
    ArgumentError
        If it is not a finite number.
    """
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not isinstance(scale, (int, float, np.floating)) or not math.isfinite(scale):
        raise ArgumentError("scale", scale, "a finite number")
    return float(scale)


def spans(n: int, block: int) -> Iterator[range]:
    """Cut ``range(n)`` into ranges of `block`, the last one possibly shorter."""
    for start in range(0, n, block):
        yield range(start, min(start + block, n))


def whole_counts(name: str, counts: ArrayLike | None, batch: int, most: int) -> NDArray[np.int64]:
    """Return how many tokens each sequence has, which is `most` if `counts` is None.

    Raises
    ------
    ArgumentError
        If `counts` is not [batch] whole numbers from 0 to `most`.
    """
    if counts is None:
        return np.full(batch, most, np.int64)
    given = whole_numbers(name, counts, (batch,))
    if given.size and not 0 <= given.min() <= given.max() <= most:
        raise ArgumentError(name, given.tolist(), f"whole numbers from 0 to {most}")
    return given.astype(np.int64)


def whole_numbers(name: str, x: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array of some integer type.

    Raises
    ------
    ArgumentError
        If `x` is anything else, or has another shape.
    """
    expected = f"whole numbers of shape {shape}"
    try:
        given = np.asarray(x)
    # An array of a GPU, rows of several lengths, a tensor that PyTorch does not give away.
    except (RuntimeError, TypeError, ValueError):
        raise ArgumentError(name, x, expected) from None
    if given.shape != shape or (given.dtype.kind not in "iu" and given.size):
        raise ArgumentError(name, x, expected)
    return given
