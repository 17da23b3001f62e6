"""Memory of the simulated GPU: arrays over raw addresses, and types as they are stored."""

import math
from types import SimpleNamespace

import numpy as np

from cuattn.arrays.view import CUDA, View
from cuattn.operands.operand import DTYPES
from cuattn.reference.rounding import round_bfloat16, saturate
from cuattn.specs.attention import Type

STORAGE = {Type.int8: "|i1", Type.int4: "|u1", Type.e4m3: "|u1"}
STORAGE |= {Type.fp16: "<f2", Type.bf16: "<u2", Type.fp32: "<f4"}
BLOCK = 128


def garbage(shape, dtype):
    """Memory as it may come from a pool: all bits set, which is NaN in every type."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF) if array.size else None
    # Counted from 256, where an allocator would begin; 16 suffices for what is checked.
    assert array.ctypes.data % 16 == 0
    return array


def view_of(x):
    """Look at a NumPy array as if it were on the GPU; uint16 stands for bfloat16."""
    strides = tuple(step // x.itemsize for step in x.strides)
    dtype = "bfloat16" if x.dtype == np.uint16 else x.dtype.name
    return View(x.ctypes.data, x.shape, strides, dtype, (CUDA, 0), not x.flags.writeable, x)


def memory(address, shape, strides, kind):
    """Return a writable array over raw memory; strides count bytes."""
    assert address or not math.prod(shape), "a null pointer would be followed"
    interface = {
        "version": 3,
        "shape": tuple(map(int, shape)),
        "strides": tuple(map(int, strides)),
        "typestr": kind,
        "data": (int(address), False),
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def compact(address, shape, kind):
    strides = np.cumprod([1, *shape[:0:-1]])[::-1] * np.dtype(kind).itemsize
    return memory(address, shape, strides, kind)


def floats(address, shape):
    return compact(address, shape, "<f4")


def widened(x, kind):
    if kind is Type.bf16:
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x


def narrowed(x, kind):
    """Round float64 to a type as it is stored."""
    if kind is Type.bf16:
        return (round_bfloat16(x).astype(np.float32).view(np.uint32) >> np.uint32(16)).astype("<u2")
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(STORAGE[kind])


def delivered(o, kind):
    """The same of an output, of which what is finite stays so."""
    return narrowed(saturate(o, next(name for name, x in DTYPES.items() if x is kind)), kind)
