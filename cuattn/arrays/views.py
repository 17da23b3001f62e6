"""What is done with views of arrays on the GPU besides attending them."""

from __future__ import annotations

from ..operands.operand import Array
from .caller import cupy_module
from .dlpack import View, as_cupy, view_cupy

__all__ = ["contiguous", "is_finite", "signature"]

# Infinities and NaN of bfloat16, which CuPy has as uint16, have all of these bits.
_BFLOAT16_EXPONENT = 0x7F80


def signature(x: View) -> Array:
    """Return what an array is, apart from its address."""
    return Array(x.shape, x.strides, x.dtype, x.device, x.ptr % 16)


def contiguous(x: View) -> View:
    """Copy an array on CuPy's current stream."""
    copy = view_cupy(cupy_module().ascontiguousarray(as_cupy(x)))
    return copy._replace(dtype=x.dtype)


def is_finite(x: View) -> bool:
    """Say whether an array has neither NaN nor infinity; waits for the GPU."""
    cupy = cupy_module()
    array = as_cupy(x)
    if x.dtype == "bfloat16":
        finite = (array & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT
    else:
        finite = cupy.isfinite(array)
    return bool(finite.all())
