"""Tensor maps: what the GPU's unit for copies of tiles, TMA, has to know of an array.

The driver writes them, on the host and without the GPU. CuPy has no binding of the function, so it
is called through ctypes; its rules are those of cuTensorMapEncodeTiled in cuda.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from ..common.sizes import round_up
from ..errors import ArgumentError, NoGPUError, UnsupportedError

__all__ = ["CONTEXT_MISSING", "TensorMap", "can_map", "make_context"]

# CU_TENSOR_MAP_DATA_TYPE_..., and the size of an element.
_DTYPES = {"uint8": (0, 1), "float16": (6, 2), "bfloat16": (9, 2)}
# CU_TENSOR_MAP_SWIZZLE_... by the bytes of a row within which chunks of 16 are permuted.
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_INTERLEAVE_NONE = 0
_L2_PROMOTION_128B = 2
_OUTSIDE_IS_ZERO = 0

_MAX_RANK = 5
_MAX_SIZE = 2**32
_MAX_BOX = 256
_CHUNK = 16  # bytes, of which addresses, strides and rows of boxes are multiples
_STRIDE_LIMIT = 2**40

_NBYTES = 128
_ALIGNMENT = 128  # what CUDA 13 declares; CUDA 12 asks for 64

# CUDA_ERROR_NOT_INITIALIZED and ..._INVALID_CONTEXT: what the driver says to a thread whose first
# call it is.
CONTEXT_MISSING = (3, 201)

# Encoded maps that a process remembers, at half a kilobyte each.
_REMEMBERED = 4096


@dataclass(frozen=True)
class TensorMap:
    """A tensor map but for its address. What of a box lies outside of the array arrives as zeros.

    Parameters
    ----------
    dtype : {"uint8", "float16", "bfloat16"}
    shape : tuple of int
        In elements, innermost axis first, whose elements are adjacent.
    strides : tuple of int
        Of the other axes, in bytes. Those of axes of size 1 may be anything.
    box : tuple of int
        What one copy takes, in elements along each axis.
    swizzle : {0, 32, 64, 128}
        Bytes of shared memory within which chunks of 16 bytes are permuted: of 128, chunk c of
        row r lands at c ^ (r % 8). A row of the box may not be longer.
    number : int
        Of its address in a `Buffers`.

    Raises
    ------
    ArgumentError
        If TMA has no such map.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    number: int

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ArgumentError("dtype", self.dtype, f"one of {list(_DTYPES)}")
        if self.swizzle not in _SWIZZLES:
            raise ArgumentError("swizzle", self.swizzle, f"one of {list(_SWIZZLES)}")
        itemsize = _DTYPES[self.dtype][1]
        if not can_map(self.shape, self.strides, _CHUNK, itemsize):
            found = f"{self.shape} and {self.strides}"
            raise ArgumentError("shape and strides in bytes", found, "what TMA can address")
        if len(self.box) != len(self.shape) or not all(1 <= n <= _MAX_BOX for n in self.box):
            expected = f"{len(self.shape)} sizes from 1 to {_MAX_BOX}"
            raise ArgumentError("box", self.box, expected)
        row = self.box[0] * itemsize
        if row % _CHUNK or (self.swizzle and row > self.swizzle):
            most = f", at most {self.swizzle}," if self.swizzle else ""
            expected = f"a multiple of {_CHUNK}{most} along the first axis, in bytes"
            raise ArgumentError("box", self.box, expected)

    def encode(self, address: int) -> bytes:
        """Return the 128 bytes of the map of an array at an address.

        Raises
        ------
        NoGPUError
            If there is no driver.
        UnsupportedError
            If the driver has no tensor maps, or refuses this one.
        """
        return _encoded(self.dtype, self.shape, self.strides, self.box, self.swizzle, address)


def can_map(
    shape: tuple[int, ...], strides: tuple[int, ...], alignment: int, itemsize: int
) -> bool:
    """Whether TMA can address an array; if not, it has to be copied first.

    Parameters
    ----------
    shape, strides : tuple of int
        As of a `TensorMap`.
    alignment : int
        A number of bytes of which the address is a multiple.
    itemsize : int
        Bytes of an element.

    Returns
    -------
    bool
        False also where cuda.h leaves open what the driver takes: for steps of 0, as broadcast
        axes have, and for steps within a row of the innermost axis.
    """
    if not 1 <= len(shape) <= _MAX_RANK or len(strides) != len(shape) - 1 or alignment % _CHUNK:
        return False
    steps = [step for step, n in zip(strides, shape[1:], strict=True) if n > 1]
    return all(1 <= n <= _MAX_SIZE for n in shape) and not any(
        step % _CHUNK or not shape[0] * itemsize <= step < _STRIDE_LIMIT for step in steps
    )


# By the parts of a map, which hash in half the time that the dataclass takes.
@lru_cache(_REMEMBERED)
def _encoded(
    dtype: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    swizzle: int,
    address: int,
) -> bytes:
    code, itemsize = _DTYPES[dtype]
    # Of an axis of size 1, where it does not count, a stride has to be valid all the same.
    row = round_up(shape[0] * itemsize, _CHUNK)
    steps = [step if n > 1 else row for step, n in zip(strides, shape[1:], strict=True)]
    sizes, halves = ctypes.c_uint64 * _MAX_RANK, ctypes.c_uint32 * _MAX_RANK
    space = ctypes.create_string_buffer(_NBYTES + _ALIGNMENT)
    place = ctypes.addressof(space)
    place += -place % _ALIGNMENT
    arguments = (
        place,
        code,
        len(shape),
        address,
        sizes(*shape),
        sizes(*steps),
        halves(*box),
        halves(*[1] * len(shape)),
        _INTERLEAVE_NONE,
        _SWIZZLES[swizzle],
        _L2_PROMOTION_128B,
        _OUTSIDE_IS_ZERO,
    )
    driver = _driver()
    error = driver.cuTensorMapEncodeTiled(*arguments)
    if error in CONTEXT_MISSING:
        make_context()
        error = driver.cuTensorMapEncodeTiled(*arguments)
    if error:
        what = f"{dtype} array of shape {shape}, strides {strides}, box {box}, swizzle {swizzle}"
        raise UnsupportedError(
            f"the driver refuses a tensor map of a {what} at address {address:#x}: "
            f"{_error_name(driver, error)}; it needs compute capability 9.0 or higher, and an "
            f"address that is a multiple of {_CHUNK}"
        )
    return ctypes.string_at(place, _NBYTES)


@cache
def _driver() -> Any:
    """Return libcuda, known to have tensor maps."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoGPUError(f"no NVIDIA driver: {error}") from None
    try:
        encode = driver.cuTensorMapEncodeTiled
    except AttributeError:
        raise UnsupportedError("this NVIDIA driver is older than CUDA 12.0") from None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    encode.argtypes = [pointer, number, ctypes.c_uint32, *[pointer] * 5, *[number] * 4]
    driver.cuGetErrorName.argtypes = [number, ctypes.POINTER(ctypes.c_char_p)]
    return driver


def make_context() -> None:
    """Give this thread the context of CuPy's current device."""
    from cupy.cuda import runtime

    runtime.memGetInfo()


def _error_name(driver: Any, error: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(error, ctypes.byref(name))
    return f"{(name.value or b'unknown error').decode()} ({error})"
