"""Tensor maps of the simulated GPU: a driver that encodes them, and their reader."""

import ctypes
import struct
from types import SimpleNamespace

import numpy as np

from .memory import memory

# Type, rank, swizzle, address, shape, strides and box of a simulated tensor map.
MAP = struct.Struct("<3Bx4xQ5Q4Q5H")


class SimulatedDriver:
    """Takes the place of libcuda: its tensor maps are readable, by `mapped`."""

    calls = 0

    @classmethod
    def cuTensorMapEncodeTiled(  # noqa: N802
        cls, out, dtype, rank, address, shape, strides, box, steps, *modes
    ):
        cls.calls += 1
        interleave, swizzle, promotion, fill = modes
        assert out % 128 == 0
        assert (interleave, promotion, fill) == (0, 2, 0)
        assert list(steps)[:rank] == [1] * rank
        if address % 16 or not all(0 < s < 2**40 and s % 16 == 0 for s in strides[: rank - 1]):
            return 1
        values = (*shape, *strides[:4], *box)
        content = MAP.pack(dtype, rank, swizzle, address, *values)
        ctypes.memmove(out, content.ljust(128, b"\0"), 128)
        return 0

    @staticmethod
    def cuGetErrorName(error, name):  # noqa: N802
        ctypes.cast(name, ctypes.POINTER(ctypes.c_char_p))[0] = b"CUDA_ERROR_SIMULATED"


def mapped(content):
    """Return the array that a simulated tensor map is of, outermost axis first, and the rest."""
    dtype, rank, swizzle, address, *values = MAP.unpack_from(content)
    kind = {0: "|u1", 6: "<f2", 9: "<u2"}[dtype]
    shape, strides, box = values[:rank], values[5 : 4 + rank], values[9 : 9 + rank]
    strides = (*strides[::-1], np.dtype(kind).itemsize)
    x = memory(address, shape[::-1], strides, kind)
    return SimpleNamespace(x=x, box=tuple(box), swizzle=(0, 32, 64, 128)[swizzle])
