"""The quantizer to 8 bits: the same codes and scales, bit for bit, as the GPU's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cuattn.errors import ArgumentError

from .arrays import Float32Array, FloatArray, as_float32, floating
from .rounding import E4M3_MAX, round_e4m3

__all__ = ["AMAX_FLOOR", "LARGEST_CODE", "CodeType", "Quantized", "Scope", "quantize", "spread"]

Scope: TypeAlias = Literal["token", "block", "channel", "tensor"]
CodeType: TypeAlias = Literal["int8", "fp8"]
Real = TypeVar("Real", np.float32, np.float64)
SCOPES = ("token", "block", "channel", "tensor")

# The smallest maximum that a scale is made of. A row of zeros must get a tiny scale, never 1: the
# scale of a token of V takes part in the maximum of its block, and a large one would drown it. Not
# smaller, because a kernel's row sum holds the inverse of V's scale, times 255 and the keys.
AMAX_FLOOR = 2.0**-64

# What the largest magnitude of a scope becomes.
LARGEST_CODE: dict[CodeType, float] = {"int8": 127.0, "fp8": E4M3_MAX}


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor as ``codes · scale``, plus a vector that was subtracted from every token.

    Attributes
    ----------
    codes : ndarray of int8 or float32 [batch, head, token, head_dim]
        Integers in −127 … 127, or e4m3 values in −448 … 448 as float32; tokens in natural order, no
        padding. `attribute` also uses float64 codes that were never rounded.
    scale : ndarray of float32
        One for each scope: [batch, head, token] for "token", [batch, head, block] for "block",
        [batch, head, head_dim] for "channel", [batch, head] for "tensor".
    scope : {"token", "block", "channel", "tensor"}
    block : int
        Tokens that share a scale if the scope is "block".
    vector : ndarray of float32 [batch, head, head_dim], or None
        What smoothing subtracted.
    """

    codes: NDArray[np.int8] | Float32Array | FloatArray
    scale: Float32Array
    scope: Scope
    block: int = 128
    vector: Float32Array | None = None

    def dequantize(self) -> FloatArray:
        """Return the represented values [batch, head, token, head_dim], the vector added back."""
        with np.errstate(invalid="ignore"):
            scale = spread(self.scale, self.scope, self.block, self.codes.shape[2])
            x: FloatArray = self.codes.astype(np.float64) * scale
            return x if self.vector is None else x + self.vector[:, :, None, :]


def quantize(
    x: ArrayLike,
    *,
    scope: Scope,
    block: int = 128,
    vector: NDArray[np.float32] | None = None,
    rounded: bool = True,
    to: CodeType = "int8",
) -> Quantized:
    r"""Quantize to 8 bits, symmetrically, with one scale for each scope.

    .. math:: d = x - vector, \quad a = \max(\max_{scope} |d|, 2^{-64}), \quad
              code = round(d \cdot (n / a)), \quad scale = a / n

    with n = 127 and integers, or n = 448 and e4m3. Every operation is one float32 operation,
    rounded to nearest even, which is what makes the result reproducible on a GPU. ``|code| <= n``
    always. Where a scope holds NaN or an infinity, its scale is NaN or infinite and the codes of
    those elements are 0.

    Parameters
    ----------
    x : array_like of float [batch, head, token, head_dim]
    scope : {"token", "block", "channel", "tensor"}
        Elements that share a scale, always inside one (batch, head).
    block : int
        Tokens of a block, for the scope "block"; blocks are aligned at token 0.
    vector : ndarray of float32 [batch, head, head_dim], optional
        Subtracted from every token; see `smoothing.smoothing_vector`.
    rounded : bool
        With False, codes are left unrounded in float64: the exact values in units of the scale.
    to : {"int8", "fp8"}
        Type of the codes; "fp8" is e4m3.

    Raises
    ------
    ArgumentError
        For an unknown scope or type, or arrays that do not fit.
    """
    x = floating("x", x)
    if x.ndim != 4:
        raise ArgumentError("x.shape", x.shape, "[batch, head, token, head_dim]")
    if scope not in SCOPES:
        raise ArgumentError("scope", scope, f"one of {SCOPES}")
    if to not in LARGEST_CODE:
        raise ArgumentError("to", to, f"one of {tuple(LARGEST_CODE)}")
    if block < 1:
        raise ArgumentError("block", block, "at least 1")
    if vector is not None and vector.shape != (*x.shape[:2], x.shape[3]):
        raise ArgumentError("vector.shape", vector.shape, f"[batch, head, head_dim] of x {x.shape}")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        d = as_float32(x)
        if vector is not None:
            d = d - vector.astype(np.float32)[:, :, None, :]
        a: Float32Array = np.maximum(_amax(d, scope, block), np.float32(AMAX_FLOOR))
        largest = np.float32(LARGEST_CODE[to])
        scale = a / largest
        if rounded:
            steps = d * spread(largest / a, scope, block, d.shape[2])
            steps = np.where(np.isnan(steps), np.float32(0), steps)
            codes = np.rint(steps).astype(np.int8) if to == "int8" else round_e4m3(steps)
            return Quantized(codes, scale, scope, block, vector)
        exact = x.astype(np.float64) - (0.0 if vector is None else vector[:, :, None, :])
        exact = exact / spread(scale, scope, block, d.shape[2])
        return Quantized(np.nan_to_num(exact, nan=0.0), scale, scope, block, vector)


def _amax(d: Float32Array, scope: Scope, block: int) -> Float32Array:
    """Largest magnitude in each scope, 0 for an empty one; NaN wins."""
    axes = {"token": (3,), "block": (3,), "channel": (2,), "tensor": (2, 3)}
    amax: Float32Array = np.max(np.abs(d), axis=axes[scope], initial=0.0)
    if scope == "block":
        amax = np.pad(amax, ((0, 0), (0, 0), (0, -amax.shape[2] % block)))
        amax = amax.reshape(*amax.shape[:2], amax.shape[2] // block, block).max(axis=3)
    return amax


def spread(of_scope: NDArray[Real], scope: Scope, block: int, n: int) -> NDArray[Real]:
    """Bring values of scopes to a shape that broadcasts against [batch, head, token, head_dim]."""
    if scope == "token":
        return of_scope[..., None]
    if scope == "block":
        return np.repeat(of_scope, block, axis=2)[:, :, :n, None]
    if scope == "channel":
        return of_scope[:, :, None, :]
    return of_scope[:, :, None, None]
