"""Arrays in host memory: looked at, copied from anywhere, written to, and made anew."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..reference.rounding import round_bfloat16
from .caller import Caller, device_of, numpy_dtype, on_device
from .dlpack import view
from .overlap import extent
from .pytorch import torch_of, view_tensor
from .view import CPU, View, as_cupy, steps_in_bytes

__all__ = [
    "HostArray",
    "heads_first",
    "look_on_host",
    "memory_of",
    "new_on_host",
    "score_values",
    "to_host",
    "write_on_host",
]

_BFLOAT16_LEAST = -float.fromhex("0x1.fep127")

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
        If it is no array, is masked, or not of a floating-point type of at least 16 bits.
    """
    if isinstance(x, np.ndarray):
        _check_mask(x, name)
        dtype, values, on_gpu = _checked(x.dtype.name, name), x, False
        if dtype == "bfloat16":  # the extension type of ml_dtypes
            values = values.astype(np.float32)
    else:
        kind, ordinal = device_of(x, name)
        on_gpu = kind != CPU
        dtype, values = _fetched(x, ordinal, name) if on_gpu else _copied(x, name)
        if dtype == "bfloat16":  # the upper half of a float32
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return HostArray(values, dtype, on_gpu)


def _fetched(x: Any, ordinal: int, name: str) -> tuple[str, NDArray[Any]]:
    with on_device(ordinal):
        caller = Caller(x, None)
        source = caller.look(x, name)
        with caller:
            return _checked(source.dtype, name), as_cupy(source).get()


def _copied(x: Any, name: str) -> tuple[str, NDArray[Any]]:
    source = look_on_host(x, name)
    dtype = _checked(source.dtype, name)
    return dtype, memory_of(source).copy()


def _check_mask(x: NDArray[Any], name: str) -> None:
    if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):
        raise ArgumentError(name, x, "an array without a mask; filled() gives one")


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
        As `cuattn.arrays.dlpack.view`, or if it is a masked array.
    """
    if not isinstance(x, np.ndarray):
        return view(x, name=name) if torch_of(x) is None else view_tensor(x, name)
    _check_mask(x, name)
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
        memory_of(target)[...] = bits
    else:
        memory_of(target)[...] = values


def new_on_host(values: NDArray[np.floating], dtype: str, like: Any) -> Any:
    """Return values, rounded to a type, in a new contiguous array.

    Parameters
    ----------
    values : ndarray
    dtype : {"float16", "bfloat16", "float32"}
    like : object
        Decides the library: PyTorch or JAX if it is an array of theirs, else NumPy.

    Raises
    ------
    UnsupportedError
        If it is NumPy, the type bfloat16, and ml_dtypes is not installed.
    """
    torch = torch_of(like)
    if torch is not None:
        tensor = torch.empty(values.shape, dtype=getattr(torch, dtype), device="cpu")
        write_on_host(view_tensor(tensor, "out"), values)
        return tensor
    array = np.ascontiguousarray(values.astype(numpy_dtype(dtype)))
    jax: Any = sys.modules.get("jax")
    jax_array: Any = getattr(jax, "Array", ())
    if not isinstance(like, jax_array):
        return array
    return jax.device_put(array, like.sharding)


def memory_of(x: View) -> NDArray[Any]:
    """Return an array over the memory of a view, which has to live; bfloat16 as its bits."""
    dtype = "uint16" if x.dtype == "bfloat16" else x.dtype
    itemsize = np.dtype(dtype).itemsize
    # Strides may be negative: element 0 is not where the memory begins.
    low, high = extent(x.shape, x.strides, itemsize)
    memory: Any = (ctypes.c_char * (high - low)).from_address(x.ptr + low)
    strides = steps_in_bytes(x, itemsize)
    return np.ndarray(x.shape, dtype, memory, offset=-low, strides=strides)


def score_values(x: Any, name: str, *, whole_last: bool = False) -> NDArray[Any]:
    """Return a mask or numbers of heads as the reference takes them, an axis of stride 0 once.

    bfloat16 is widened to float32, where its least number, which hides a key, becomes -inf. With
    `whole_last` the last axis is as long as it was, whatever its stride.
    """
    seen = look_on_host(x, name)
    values = x.view(np.ndarray) if isinstance(x, np.ndarray) else memory_of(seen)
    axes = [slice(None) if step else slice(0, 1) for step in values.strides]
    if whole_last and axes:
        axes[-1] = slice(None)
    values = values[tuple(axes)]
    if seen.dtype != "bfloat16":
        return values
    wide = (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.where(wide <= _BFLOAT16_LEAST, np.float32(-np.inf), wide)
