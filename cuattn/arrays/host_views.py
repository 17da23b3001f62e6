"""Views of arrays in host memory, NumPy's or not, and writing to them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference.rounding import round_bfloat16
from .dlpack import CPU, View, view
from .host import refuse_masked

__all__ = ["look_on_host", "write_on_host"]


def look_on_host(x: Any, name: str) -> View:
    """Look at an array in host memory.

    Raises
    ------
    ArgumentError, UnsupportedError
        As `cuattn.arrays.dlpack.view`, or if it is a masked array.
    """
    if not isinstance(x, np.ndarray):
        return view(x, name=name)
    refuse_masked(x, name)
    # NumPy exports neither bfloat16 nor read-only arrays in all of its versions.
    strides = tuple(step // x.itemsize for step in x.strides)
    readonly = not x.flags.writeable
    return View(x.ctypes.data, x.shape, strides, x.dtype.name, (CPU, 0), readonly, x)


def write_on_host(target: View, values: NDArray[np.floating]) -> None:
    """Write values, rounded to its type, to an array that `look_on_host` has looked at."""
    if isinstance(target.owner, np.ndarray):
        target.owner[...] = values
    elif target.dtype == "bfloat16":
        bits = round_bfloat16(values).astype(np.float32).view(np.uint32) >> np.uint32(16)
        _memory(target, np.dtype(np.uint16))[...] = bits
    else:
        _memory(target, np.dtype(target.dtype))[...] = values


def _memory(target: View, dtype: np.dtype[Any]) -> NDArray[Any]:
    steps = zip(target.shape, target.strides, strict=True)
    elements = sum((n - 1) * step for n, step in steps) + 1 if all(target.shape) else 0
    memory: Any = (ctypes.c_char * (elements * dtype.itemsize)).from_address(target.ptr)
    strides = tuple(step * dtype.itemsize for step in target.strides)
    return np.ndarray(target.shape, dtype, memory, strides=strides)
