"""Whether two arrays share memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .pytorch import note_write
from .view import View, steps_in_bytes

__all__ = ["check_output", "check_writable", "extent", "overlap"]

# Steps that NumPy may spend on the question, which is NP-hard in general; here a few suffice.
_MAX_WORK = 10_000

_WRITABLE = "writable: not read-only, not of JAX, and no tensor that requires gradients"


def extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return where an array's bytes begin and end, counted from element 0; strides in elements."""
    if not all(shape):
        return 0, 0
    steps = [(n - 1) * step * itemsize for n, step in zip(shape, strides, strict=True)]
    low, high = (sum(step for step in steps if (step > 0) == up) for up in (False, True))
    return low, high + itemsize


def overlap(a: View, b: View, itemsize: int, other: int | None = None) -> bool:
    """Say whether an element of one array lies on an element of the other.

    Arrays that only interleave, like the parts of packed Q, K and V, do not overlap. A question
    that is too hard is answered with yes.

    Parameters
    ----------
    a, b : View
    itemsize : int
        Bytes of an element of both.
    other : int, optional
        Those of an element of `b`, if they are others.
    """
    try:
        # NumPy's stubs know only the special values of the last argument.
        ask: Any = np.shares_memory
        return bool(ask(_stand_in(a, itemsize), _stand_in(b, other or itemsize), _MAX_WORK))
    except np.exceptions.TooHardError:
        return True


def check_output(
    out: Any,
    target: View,
    inputs: Mapping[Any, View],
    extents: Mapping[Any, tuple[int, int]],
    itemsize: int,
    others: Mapping[Any, int] = MappingProxyType({}),
) -> None:
    """Check that an output can be written, and shares no memory with what is read.

    Parameters
    ----------
    out : array
        The caller's.
    target : View
        Of it.
    inputs : mapping of str to View
    extents : mapping of str to tuple of int
        `extent` of the inputs and of "out".
    itemsize : int
        Of the output, and of inputs.
    others : mapping of str to int
        Of inputs of other sizes.

    Raises
    ------
    ArgumentError
        If it is anything else.
    """
    check_writable(out, target)
    low, high = extents["out"]
    begin, end = target.ptr + low, target.ptr + high
    for name, x in inputs.items():
        low, high = extents[name]
        apart = x.ptr + high <= begin or end <= x.ptr + low
        if not apart and overlap(target, x, itemsize, others.get(name)):
            raise ArgumentError("out", out, f"in memory apart from that of {name}")
    note_write(out)


def check_writable(out: Any, target: View) -> None:
    """Check that an output may be written to.

    Raises
    ------
    ArgumentError
        If its library forbids it, does not expect it or would not see it: `View.readonly`.
    """
    if target.readonly:
        raise ArgumentError("out", out, _WRITABLE)


class _Interface:
    def __init__(self, x: View, itemsize: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": x.shape,
            "strides": steps_in_bytes(x, itemsize),
            "typestr": f"|V{itemsize}",
            "data": (x.ptr, True),
        }


def _stand_in(x: View, itemsize: int) -> NDArray[np.void]:
    """Return an array for NumPy to compute addresses with; it is never read."""
    return np.asarray(_Interface(x, itemsize))
