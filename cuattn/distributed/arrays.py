"""The few things that are done to callers' arrays of any library: parts of them, and new ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..arrays.caller import numpy_dtype
from ..arrays.pytorch import torch_of
from ..arrays.view import cupy_module
from .side_stream import is_on_gpu

__all__ = [
    "concat",
    "copy_bytes",
    "dtype_of",
    "empty",
    "from_bytes",
    "is_contiguous",
    "is_writable",
    "library",
    "raw_bytes",
    "rows",
    "zeros",
]


def library(x: Any) -> Any:
    """Return the module that an array's functions are in: of NumPy, CuPy, PyTorch or JAX."""
    torch = torch_of(x)
    if torch is not None:
        return torch
    if isinstance(x, np.ndarray):
        return np
    return cupy_module() if is_on_gpu(x) else x.__array_namespace__()


def dtype_of(x: Any) -> str:
    """Return the name of an array's type, "bfloat16" for example."""
    return _name_of(x.dtype)


@lru_cache(64)
def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def rows(x: Any, axis: int, start: int, stop: int, *, step: int = 1, pad: int = 0) -> Any:
    """Return part of an array along an axis, a view where the library has views.

    Parameters
    ----------
    pad : int
        Rows more than those to `stop`: the next ones where there are any, else zeros.
    """
    missing = max(0, stop + pad - int(x.shape[axis])) if pad else 0
    part = x[(slice(None),) * axis + (slice(start, stop + pad - missing, step),)]
    if not missing:
        return part
    shape = list(part.shape)
    shape[axis] = missing
    return concat([part, zeros(part, tuple(shape))], axis)


def concat(parts: Sequence[Any], axis: int) -> Any:
    """Return arrays of one library end to end."""
    xp = library(parts[0])
    return (
        xp.cat(list(parts), axis)
        if torch_of(parts[0]) is not None
        else xp.concatenate(list(parts), axis)
    )


def empty(like: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """Return a new array of the library, device and, unless it is named, type of another."""
    return _made("empty", like, shape, dtype)


def zeros(like: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """Return the same of zeros."""
    return _made("zeros", like, shape, dtype)


def is_writable(x: Any) -> bool:
    """Say whether parts of an array may be written: JAX's are immutable."""
    jax: Any = sys.modules.get("jax")
    return not isinstance(x, getattr(jax, "Array", ()))


def is_contiguous(x: Any) -> bool:
    """Say whether an array lies in memory without gaps and in the order of its axes."""
    if torch_of(x) is not None:
        return bool(x.is_contiguous())
    flags = getattr(x, "flags", None)
    return flags is not None and bool(flags.c_contiguous)


def raw_bytes(x: Any, xp: Any) -> Any:
    """Return the bytes of a contiguous array as an array of uint8 of NumPy or CuPy, no copy.

    Parameters
    ----------
    xp : module
        numpy or cupy, wherever the array is.
    """
    torch = torch_of(x)
    if torch is not None:
        x = x.contiguous().view(torch.uint8)
        return (x.numpy() if xp is np else xp.from_dlpack(x)).reshape(-1)
    if not isinstance(x, xp.ndarray):
        if dtype_of(x) == "bfloat16":  # of JAX: DLPack's, which neither library has
            x = library(x).asarray(x).view("uint16")
        x = xp.from_dlpack(x)
    x = xp.ascontiguousarray(x).reshape(-1)
    return x.view(np.uint8) if x.size else xp.zeros(0, np.uint8)


def copy_bytes(source: Any, to: Any) -> None:
    """Copy an array of bytes of NumPy or CuPy into another one; on a GPU in its current stream."""
    if isinstance(to, np.ndarray):
        to[...] = source
    elif to.size:  # as a kernel on single bytes would not
        to.data.copy_from_device_async(source.data, to.nbytes)


def from_bytes(buffer: Any, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
    """Return bytes of NumPy or CuPy as an array of a type: of PyTorch if `like` is, no copy."""
    torch = torch_of(like)
    if not buffer.size:
        return library(like if torch is not None else buffer).zeros(shape, **_kind(like, dtype))
    if torch is None:
        return buffer.view(numpy_dtype(dtype)).reshape(shape)
    made = torch.from_numpy if isinstance(buffer, np.ndarray) else torch.from_dlpack
    return made(buffer).view(getattr(torch, dtype)).reshape(shape)


def _made(how: str, like: Any, shape: tuple[int, ...], dtype: str | None) -> Any:
    return getattr(library(like), how)(shape, **_kind(like, dtype))


def _kind(like: Any, dtype: str | None) -> dict[str, Any]:
    """Return type and place of a new array as its library wants to be told."""
    torch = torch_of(like)
    if torch is None:
        return {"dtype": numpy_dtype(dtype) if dtype else like.dtype}
    return {"dtype": getattr(torch, dtype) if dtype else like.dtype, "device": like.device}
