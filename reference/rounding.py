"""Rounding of values to the floating-point types that the tensor cores multiply."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray, as_float32

__all__ = [
    "E4M3_MAX",
    "LARGEST",
    "HalfType",
    "e4m3_bits",
    "e4m3_values",
    "round_bfloat16",
    "round_e4m3",
    "round_half",
    "saturate",
]

HalfType: TypeAlias = Literal["float16", "bfloat16"]
Real = TypeVar("Real", np.float32, np.float64)

# The largest e4m3. The type has 4 bits of exponent, 3 of fraction, no infinity, and the one NaN of
# each sign where 480 would be (Micikevicius et al., FP8 Formats for Deep Learning, 2209.05433).
E4M3_MAX = 448.0
_LEAST_EXPONENT = -6  # of normal numbers

# The largest finite number of each type that an output can have.
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float.fromhex("0x1.fep127"),
    "float32": float(np.finfo(np.float32).max),
}


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


def round_e4m3(x: NDArray[Real]) -> NDArray[Real]:
    """Round to the nearest e4m3, ties to even, or 448 where that is too small; NaN stays NaN."""
    # frexp's fraction is in 0.5 .. 1, so its exponent is one more than that of 1.xxx.
    exponent = np.maximum(np.frexp(x)[1] - 1, _LEAST_EXPONENT)
    step = np.ldexp(x.dtype.type(1), exponent - 3)
    with np.errstate(invalid="ignore"):
        rounded: NDArray[Real] = np.clip(np.rint(x / step) * step, -E4M3_MAX, E4M3_MAX)
    return rounded


def e4m3_bits(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the codes of values that are e4m3 exactly, none of them NaN."""
    # As float16, x / 256 has the same fraction, and its exponent the same bits.
    half = (x.astype(np.float32) / np.float32(256)).astype(np.float16).view(np.uint16)
    return (half >> np.uint16(8) & np.uint16(0x80) | half >> np.uint16(7) & np.uint16(0x7F)).astype(
        np.uint8
    )


def e4m3_values(bits: Any) -> Any:
    """Undo `e4m3_bits`, to float32; of any library."""
    wide = bits.astype("uint16")
    half = ((wide & 0x80) << 8 | (wide & 0x7F) << 7).view("float16")
    return half.astype("float32") * np.float32(256)


def round_half(x: NDArray[np.floating], to: HalfType) -> FloatArray:
    """Round to the nearest float16 or bfloat16, ties to even, and return that as float64."""
    if to == "bfloat16":
        return round_bfloat16(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float16).astype(np.float64)


def saturate(x: FloatArray, dtype: str) -> FloatArray:
    """Return what rounds to a finite number of a type wherever `x` is finite.

    Codes are rounded, so that a result of theirs may be a little beyond the largest element of V
    and the range of the output, though the exact one is not. NaN and infinities stay.

    Parameters
    ----------
    x : ndarray of float64
    dtype : {"float16", "bfloat16", "float32"}
    """
    largest = LARGEST[dtype]
    return np.where(np.isinf(x), x, np.clip(x, -largest, largest))
