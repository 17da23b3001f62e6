"""How often each code occurs in a quantized operand and in P."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..scheme import Scheme
from .arrays import as_float32
from .quantized import LARGEST_CODE, CodeType, Quantized
from .rounding import E4M3_MAX, HalfType, e4m3_bits

__all__ = ["largest_p", "operand_counts", "p_numbers"]


def operand_counts(x: Quantized, of: CodeType) -> NDArray[np.int64]:
    """Count the codes of Q, K or V.

    Parameters
    ----------
    x : Quantized
    of : {"int8", "int4", "fp8"}

    Returns
    -------
    ndarray of int64 [codes]
        For each code, 0 in the middle: −127 … 127 or −7 … 7, or −126 … 126 for e4m3, which has as
        many values of each sign.
    """
    if of == "fp8":
        size = e4m3_bits(np.abs(x.codes)).astype(np.int64)
        numbers, largest = np.where(x.codes < 0, -size, size), int(e4m3_bits(_array(E4M3_MAX))[0])
    else:
        numbers, largest = x.codes.astype(np.int64), int(LARGEST_CODE[of])
    return np.bincount((numbers + largest).ravel(), minlength=2 * largest + 1)


def p_numbers(codes: NDArray[Any], scheme: Scheme, compute: HalfType) -> NDArray[np.int64]:
    """Return the place of each element of P among all that the scheme can represent.

    Parameters
    ----------
    codes : ndarray
        As in `softmax.PBlock`; NaN counts as 0.
    scheme : Scheme
    compute : {"float16", "bfloat16"}
        Type of a P that is not of 8 bits.

    Returns
    -------
    ndarray of int64
        Counted from 0. Steps of the finer range if there are two.
    """
    codes = np.nan_to_num(codes)
    if scheme.pv == "fp8":
        return e4m3_bits(codes).astype(np.int64)
    if scheme.pv == "fp16" and compute == "float16":
        return codes.astype(np.float16).view(np.uint16).astype(np.int64)
    if scheme.pv == "fp16":
        return (as_float32(codes).view(np.uint32) >> np.uint32(16)).astype(np.int64)
    return codes.astype(np.int64)


def largest_p(scheme: Scheme, compute: HalfType) -> int:
    """Return the place of the largest P, which is 1, or 448 in e4m3."""
    if scheme.pv in ("fp16", "fp8"):
        one = _array(1.0 if scheme.pv == "fp16" else E4M3_MAX)
        return int(p_numbers(one, scheme, compute)[0])
    if scheme.p_range in ("twin", "static127"):
        return 127 << (scheme.p_split if scheme.p_range == "twin" else 0)
    return (1 << 8 * scheme.p_terms) - 1


def _array(x: ArrayLike) -> NDArray[np.float64]:
    return np.atleast_1d(np.asarray(x, np.float64))
