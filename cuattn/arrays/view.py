"""Arrays of the GPU or the host, of whatever library, as an address, a shape and strides."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, NoGPUError
from .cuda_runtime import check_version, forget_after_fork, import_cupy
from .device import gpu_status

__all__ = [
    "CPU",
    "CUDA",
    "Array",
    "View",
    "as_cupy",
    "as_float32",
    "check_address",
    "check_steps",
    "contiguous",
    "cupy_address",
    "cupy_module",
    "is_finite",
    "place",
    "steps_in_bytes",
    "view_cupy",
]

# DLDeviceType
CPU = 1
CUDA = 2
_CUDA_HOST = 3
_CUDA_MANAGED = 13

# NumPy has no type for these; their bits travel as integers.
_STORAGE = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


# Strides of arrays of CuPy, at a few hundred bytes each.
_REMEMBERED = 1024

# Infinities and NaN of bfloat16, which CuPy has as uint16, have all of these bits.
_BFLOAT16_EXPONENT = 0x7F80


class Array(NamedTuple):
    """What a caller's array is, apart from its address: equal ones are treated alike.

    Axes are in the caller's order, strides count elements, `misalignment` is the address modulo 16
    and `device` is DLPack's (type, ordinal).
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    misalignment: int = 0


class View(NamedTuple):
    """Where an array lies; the memory lives as long as `owner`.

    Parameters
    ----------
    ptr : int
        Address of element 0; arrays without elements may have 0.
    shape, strides : tuple of int
        Strides count elements.
    dtype : str
        For example "float16", "bfloat16" or "float8_e4m3fn".
    device : tuple of int
        DLPack's device type, such as `CPU` or `CUDA`, and the ordinal.
    readonly : bool
        The producer forbids writing.
    owner : object
        Keeps the memory alive.
    """

    ptr: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    readonly: bool
    owner: object

    @property
    def signature(self) -> Array:
        """What the array is, apart from its address."""
        fields = self.shape, self.strides, self.dtype, self.device, self.ptr % 16
        # As `Array(*fields)` in half the time, which counts: each call asks for three or four.
        return tuple.__new__(Array, fields)


def place(kind: int, ordinal: int) -> tuple[int, int]:
    """Return a device of DLPack, with managed memory as the GPU's and pinned memory as the host's.

    Parameters
    ----------
    kind : int
        DLPack's device type.
    ordinal : int
    """
    if kind == _CUDA_HOST:
        return CPU, 0
    return (CUDA if kind == _CUDA_MANAGED else int(kind)), int(ordinal)


def check_address(seen: View, x: Any, name: str) -> None:
    """Check that an array with elements has an address.

    Raises
    ------
    ArgumentError
        If it is null: a kernel that follows it takes the whole process's CUDA context with it.
    """
    if not seen.ptr and all(seen.shape):
        raise ArgumentError(name, x, "an array with memory (its address is 0)")


def check_steps(x: Any, name: str) -> None:
    """Check that the strides of a ``cupy.ndarray``, which are in bytes, are whole elements.

    Those of records that are looked at as another type need not be.

    Raises
    ------
    ArgumentError
        If they are not: `View` cannot say where the elements are, and no GPU could read them.
    """
    step = _step_between(x.shape, x.strides, x.dtype.itemsize)
    if step:
        expected = f"of elements that are multiples of {x.dtype.itemsize} bytes apart, not {step}"
        raise ArgumentError(name, x, expected)


@lru_cache(_REMEMBERED)
def _step_between(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    """Return the first step that is no multiple of an element and is taken, or 0."""
    # An axis of length 1 is never stepped along.
    taken = [step for step, n in zip(strides, shape, strict=True) if n > 1] if all(shape) else []
    return next((step for step in taken if step % itemsize), 0)


def steps_in_bytes(x: View, itemsize: int) -> tuple[int, ...]:
    """Return strides in bytes; of an axis of length 1, which is never stepped along, 0."""
    steps = zip(x.shape, x.strides, strict=True)
    return tuple([step * itemsize if n > 1 else 0 for n, step in steps])


@cache
def cupy_module() -> Any:
    """Return CuPy, which has a GPU.

    Raises
    ------
    NoGPUError
        If it does not import, or its CUDA finds no GPU.
    UnsupportedError
        If it is too old.
    """
    state, why = gpu_status()
    if state != "ok":
        raise NoGPUError(f"no usable GPU: {why}")
    cupy = import_cupy()
    check_version(cupy)
    return cupy


forget_after_fork(cupy_module.cache_clear)


def cupy_address(array: Any) -> int:
    """Return the address of a ``cupy.ndarray``."""
    address: int = array.data.ptr
    return address


def view_cupy(array: Any) -> View:
    """Look at a ``cupy.ndarray`` that is used on CuPy's current stream, so needs no hand-over."""
    dtype, data = array.dtype, array.data
    strides = _in_elements(array.strides, dtype.itemsize)
    device = (CUDA, data.device_id)
    fields = data.ptr, array.shape, strides, _dtype_name(dtype), device, False, array
    # As `View(*fields)` in half the time.
    return tuple.__new__(View, fields)


@lru_cache(_REMEMBERED)
def _in_elements(strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple([stride // itemsize for stride in strides])


def as_cupy(source: View) -> Any:
    """Return a ``cupy.ndarray`` over the memory of a view on a GPU.

    bfloat16 appears as uint16 and float8 as uint8. CuPy has no read-only arrays: whoever writes
    checks `View.readonly` first.
    """
    import cupy

    dtype = cupy.dtype(_STORAGE.get(source.dtype, source.dtype))
    steps = zip(source.shape, source.strides, strict=True)
    elements = sum((n - 1) * step for n, step in steps if step > 0) + 1 if all(source.shape) else 0
    memory = cupy.cuda.UnownedMemory(
        source.ptr, elements * dtype.itemsize, source.owner, source.device[1]
    )
    return cupy.ndarray(
        source.shape,
        dtype,
        cupy.cuda.MemoryPointer(memory, 0),
        steps_in_bytes(source, dtype.itemsize),
    )


def as_float32(source: View) -> Any:
    """Return a new ``cupy.ndarray`` of the values of floats of at most 32 bits."""
    values = as_cupy(source)
    if source.dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def contiguous(x: View) -> View:
    """Copy an array on CuPy's current stream."""
    return view_cupy(cupy_module().ascontiguousarray(as_cupy(x)))._replace(dtype=x.dtype)


def is_finite(x: View) -> bool:
    """Say whether an array has neither NaN nor infinity; waits for the GPU."""
    cupy = cupy_module()
    array = as_cupy(x)
    if x.dtype == "bfloat16":
        finite = (array & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT
    else:
        finite = cupy.isfinite(array)
    return bool(finite.all())


@cache
def _dtype_name(dtype: Any) -> str:
    return str(dtype.name)
