"""Arrays of other libraries, through DLPack, without a copy.

CuPy's own importer knows neither bfloat16 nor float8 and drops the read-only flag; this one reads
the structures itself (https://dmlc.github.io/dlpack/latest/c_api.html, versions 0 and 1). Nothing
in a capsule is followed before it has been checked.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from operator import mul
from typing import Any

from ..errors import ArgumentError, UnsupportedError
from .overlap import extent
from .view import CPU, View, check_address, place

__all__ = ["view"]

# DLManagedTensor, and DLManagedTensorVersioned, whose version, manager and flags come before the
# tensor. Reading all members in one go is several times faster than a ctypes.Structure.
_TENSOR = "Q i i i B B H Q Q Q"  # data, device, ndim, code, bits, lanes, shape, strides, offset
_UNVERSIONED = struct.Struct("=" + _TENSOR)
_VERSIONED = struct.Struct("=I I 16x Q" + _TENSOR)
_UNVERSIONED_BYTES = ctypes.c_char * _UNVERSIONED.size
_VERSIONED_BYTES = ctypes.c_char * _VERSIONED.size
_FLAG_READ_ONLY = 1

# More axes than any library has; shapes and strides are read in one go.
_MAX_AXES = 64
# No memory lies higher on any 64-bit computer, and strides in bytes have to fit an int64.
_ADDRESSES = 2**63

# Functions of our own: other libraries change the types of those of `ctypes.pythonapi`.
_name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# (DLDataTypeCode, bits) -> name, as NumPy or ml_dtypes spell it.
_DTYPES = {
    **{(0, bits): f"int{bits}" for bits in (8, 16, 32, 64)},
    **{(1, bits): f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{(2, bits): f"float{bits}" for bits in (16, 32, 64)},
    (4, 16): "bfloat16",
    (6, 8): "bool",
    (10, 8): "float8_e4m3fn",
    (12, 8): "float8_e5m2",
}


def view(x: Any, stream: int | None = None, name: str = "array") -> View:
    """Look at any array that has ``__dlpack__``.

    Parameters
    ----------
    x : object
        Array of CuPy, PyTorch, JAX, NumPy, ...
    stream : int, optional
        What `hand_over` returned: the producer orders its pending work before that stream. Not used
        for arrays in host memory.
    name : str, optional
        What errors call the array.

    Raises
    ------
    ArgumentError
        If `x` is no such array, its producer does not export it, its dtype is unknown, or its
        capsule describes no memory: without an address, or beyond the address space.
    UnsupportedError
        If the producer speaks a later major version of DLPack.
    """
    of_jax = type(x).__module__.startswith("jax")
    try:
        device = place(*x.__dlpack_device__())
        if stream == -1 and of_jax:
            stream = None  # how JAX is told not to wait; it takes -1 for the handle of a stream
        options = {} if device[0] == CPU else {"stream": stream}
        try:
            capsule = x.__dlpack__(max_version=(1, 0), **options)
        except TypeError:  # a producer from before DLPack 1
            capsule = x.__dlpack__(**options)
        kind = _name_of(capsule)
    except (AttributeError, BufferError, TypeError, ValueError) as error:
        raise ArgumentError(name, x, f"an array that DLPack can share ({error})") from None
    # Arrays of JAX are immutable, and others may share their memory; not all versions say so.
    seen = _read(capsule, kind, of_jax, x, name)
    if seen.device != device:
        expected = f"an array whose capsule is where its __dlpack_device__ says, {device}"
        raise ArgumentError(name, x, f"{expected}, not {seen.device}")
    return seen


def _read(capsule: Any, kind: bytes | None, readonly: bool, x: Any, name: str) -> View:
    if kind == b"dltensor_versioned":
        members = _VERSIONED.unpack_from(_VERSIONED_BYTES.from_address(_pointer(capsule, kind)))
        major, minor, flags = members[:3]
        if major != 1:
            raise UnsupportedError(f"{name} comes as DLPack {major}.{minor}, which is not 1.x")
        members = members[3:]
    elif kind == b"dltensor":
        flags = 0
        members = _UNVERSIONED.unpack_from(_UNVERSIONED_BYTES.from_address(_pointer(capsule, kind)))
    else:  # somebody consumed the capsule before, which renames it
        raise ArgumentError(name, x, "an array whose __dlpack__ gives an unused capsule")
    data, device_type, device_id, ndim, code, bits, lanes, shape_at, strides_at, offset = members
    dtype = _DTYPES.get((code, bits))
    if dtype is None or lanes != 1:
        expected = f"of one of the dtypes {sorted(_DTYPES.values())}"
        raise ArgumentError(name, x, f"{expected} (DLPack code {code}, {bits} bits, lanes {lanes})")
    if not 0 <= ndim <= _MAX_AXES or (ndim and not shape_at):
        shape_of = f"{ndim} axes" + ("" if shape_at else ", without a shape")
        raise ArgumentError(name, x, f"of at most {_MAX_AXES} axes (DLPack: {shape_of})")
    shape = _integers(shape_at, ndim)
    if min(shape, default=0) < 0:
        raise ArgumentError(name, x, f"of lengths that are at least 0 (DLPack: {shape})")
    strides = _integers(strides_at, ndim) if strides_at else _compact(shape)
    begin = data + offset if data else 0
    # At most so far from element 0; a closer look takes a microsecond.
    reach = (1 + sum(map(abs, map(mul, shape, strides)))) * (bits // 8)
    if begin and not reach < begin < _ADDRESSES - reach:
        low, high = extent(shape, strides, bits // 8)
        if begin + low <= 0 or begin + high > _ADDRESSES:
            raise ArgumentError(name, x, f"inside the address space (DLPack: {shape}, {strides})")
    # The capsule is kept as it is, so its own destructor frees the producer's tensor with `owner`.
    seen = View(
        begin,
        shape,
        strides,
        dtype,
        place(device_type, device_id),
        readonly or bool(flags & _FLAG_READ_ONLY),
        capsule,
    )
    if not begin:
        check_address(seen, x, name)
    return seen


@cache
def _layout(ndim: int) -> tuple[struct.Struct, Any]:
    return struct.Struct(f"={ndim}q"), ctypes.c_char * (8 * ndim)


def _integers(address: int, count: int) -> tuple[int, ...]:
    layout, raw = _layout(count)
    return layout.unpack_from(raw.from_address(address))


def _compact(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * n)
    return tuple(reversed(strides)) if shape else ()
