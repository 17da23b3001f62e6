"""Arrays in host memory: looked at, copied from anywhere, and written to."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..reference.rounding import round_bfloat16
from .dlpack import view
from .streams import hand_over
from .view import CPU, View, as_cupy, cupy_module

__all__ = ["HostArray", "heads_first", "look_on_host", "to_host", "write_on_host"]

TYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class HostArray:
    """An array as NumPy can hold it.

    Attributes
    ----------
    values : ndarray of floating
        bfloat16, which NumPy lacks, is widened to float32.
    dtype : str
        Type that the array had.
    on_gpu : bool
        Whether it lies in a GPU's memory.
    """

    values: NDArray[np.floating]
    dtype: str
    on_gpu: bool


def to_host(x: Any, name: str) -> HostArray:
    """Copy an array to the host, unless NumPy can use it where it is.

    Parameters
    ----------
    x : array
        Of NumPy or anything with ``__dlpack__``.
    name : str
        What errors call it.

    Raises
    ------
    ArgumentError
        If it is no array, or not of a floating-point type of at least 16 bits.
    """
    if isinstance(x, np.ndarray):
        dtype, values, on_gpu = _checked(x.dtype.name, name), x, False
        if dtype == "bfloat16":  # the extension type of ml_dtypes
            values = values.astype(np.float32)
    else:
        if not hasattr(x, "__dlpack_device__"):
            raise ArgumentError(name, x, "an array")
        on_gpu = x.__dlpack_device__()[0] != CPU
        dtype, values = (_fetched if on_gpu else _copied)(x, name)
        if dtype == "bfloat16":  # the upper half of a float32
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return HostArray(values, dtype, on_gpu)


def _fetched(x: Any, name: str) -> tuple[str, NDArray[Any]]:
    cupy = cupy_module()
    with cupy.cuda.Device(x.__dlpack_device__()[1]):
        source = view(x, hand_over(cupy.cuda.get_current_stream().ptr), name)
        return _checked(source.dtype, name), as_cupy(source).get()


def _copied(x: Any, name: str) -> tuple[str, NDArray[Any]]:
    source = view(x, name=name)
    name_of_type = _checked(source.dtype, name)
    dtype = np.dtype("uint16" if name_of_type == "bfloat16" else name_of_type)
    steps = zip(source.shape, source.strides, strict=True)
    elements = sum((n - 1) * step for n, step in steps) + 1 if all(source.shape) else 0
    memory = (ctypes.c_char * (elements * dtype.itemsize)).from_address(source.ptr)
    strides = tuple(step * dtype.itemsize for step in source.strides)
    array = np.ndarray(source.shape, dtype, memoryview(memory).cast("B"), strides=strides)
    return name_of_type, array.copy()


def _checked(dtype: str, name: str) -> str:
    if dtype not in TYPES:
        raise ArgumentError(f"{name}.dtype", dtype, f"one of {TYPES}")
    return dtype


def heads_first(x: NDArray[Any], layout: str) -> NDArray[Any]:
    """Return an array of a layout, "HND" or "NHD", as [batch, head, token, head_dim].

    Raises
    ------
    ArgumentError
        For another layout.
    """
    if layout not in ("HND", "NHD"):
        raise ArgumentError("layout", layout, "'HND' or 'NHD'")
    return x.swapaxes(1, 2) if layout == "NHD" and x.ndim == 4 else x


def look_on_host(x: Any, name: str) -> View:
    """Look at an array in host memory.

    Raises
    ------
    ArgumentError, UnsupportedError
        As `cuattn.arrays.dlpack.view`.
    """
    if not isinstance(x, np.ndarray):
        return view(x, name=name)
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
