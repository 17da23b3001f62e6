"""Rounding of values to the half-precision types that the tensor cores multiply."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray, as_float32

__all__ = ["HalfType", "round_bfloat16", "round_half"]

HalfType: TypeAlias = Literal["float16", "bfloat16"]


def round_bfloat16(x: NDArray[np.floating]) -> FloatArray:
    """Round to the nearest bfloat16 (float32 with 7 fraction bits), ties to even.

    NumPy has no such type; adding half of the last kept bit to the float32's bits rounds it, and
    the carry runs into the exponent as it should, up to infinity.
    """
    x32 = as_float32(x)
    bits = x32.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    kept = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    # The carry would turn some NaNs into infinities or zeros.
    rounded = np.where(np.isnan(x32), np.float32(np.nan), kept.view(np.float32))
    return np.asarray(rounded, np.float64)


def round_half(x: NDArray[np.floating], to: HalfType) -> FloatArray:
    """Round to the nearest float16 or bfloat16, ties to even, and return that as float64."""
    if to == "bfloat16":
        return round_bfloat16(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float16).astype(np.float64)
