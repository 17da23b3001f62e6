"""The quantizer to 8 and 4 bits: the same codes and scales, bit for bit, as the GPU's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from .arrays import Float32Array, FloatArray, as_float32, floating
from .rotation import rotate_exactly, rotation_factor, turn, unrotate
from .rounding import E4M3_MAX, round_e4m3
from .scopes import SCOPES, Scope, scope_of_tokens, spread
from .sorting import natural_order, scopes_of_order

__all__ = [
    "AMAX_FLOOR",
    "LARGEST_CODE",
    "CodeType",
    "Quantized",
    "quantize",
    "token_amax",
]

CodeType: TypeAlias = Literal["int8", "int4", "fp8"]


# The smallest maximum that a scale is made of. A row of zeros must get a tiny scale, never 1: the
# scale of a token of V takes part in the maximum of its block, and a large one would drown it. Not
# smaller, because a kernel's row sum holds the inverse of V's scale, times 255 and the keys.
AMAX_FLOOR = 2.0**-64

# What the largest magnitude of a scope becomes.
LARGEST_CODE: dict[CodeType, float] = {"int8": 127.0, "int4": 7.0, "fp8": E4M3_MAX}


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor as ``codes · scale``, plus a vector that was subtracted from every token.

    Attributes
    ----------
    codes : ndarray of int8 or float32 [batch, head, token, head_dim]
        Integers in −127 … 127 or −7 … 7, or e4m3 values in −448 … 448 as float32; tokens in natural
        order, no padding. `attribute` also uses float64 codes that were never rounded.
    scale : ndarray of float32
        One for each scope: [batch, head, token] for "token", [batch, head, token, group] for
        "group", [batch, head, scope] for the scopes of several tokens, [batch, head, head_dim] for
        "channel", [batch, head] for "tensor". Those of sorted tokens are repeated for each token.
    scope : {"token", "group", "block", "thread_q", "thread_k", "sorted", "channel", "tensor"}
    block : int
        Tokens that share a scale if the scope is "block", channels of a token if it is "group".
    vector : ndarray of float32 [batch, head, head_dim], or None
        What smoothing subtracted.
    rotated : bool
        Whether the codes are of `rotation.rotate` of the rest.
    order : ndarray of uint8 [batch, head, block, 128], or None
        Of sorted tokens, which of its block each place holds; see `sorting`.
    """

    codes: NDArray[np.int8] | Float32Array | FloatArray
    scale: Float32Array
    scope: Scope
    block: int = 128
    vector: Float32Array | None = None
    rotated: bool = False
    order: NDArray[np.uint8] | None = None

    def dequantize(self) -> FloatArray:
        """Return the represented values [batch, head, token, head_dim].

        Rotation is undone, then the vector added back.
        """
        with np.errstate(invalid="ignore"):
            scale = spread(self.scale, self.scope, self.block, self.codes.shape[2])
            x: FloatArray = self.codes.astype(np.float64) * scale
            x = unrotate(x) if self.rotated else x
            return x if self.vector is None else x + self.vector[:, :, None, :]


def quantize(
    x: ArrayLike,
    *,
    scope: Scope,
    block: int = 128,
    vector: NDArray[np.float32] | None = None,
    rotated: bool = False,
    factor_first: bool = False,
    rounded: bool = True,
    to: CodeType = "int8",
    order: NDArray[np.uint8] | None = None,
    sizes: Float32Array | None = None,
) -> Quantized:
    r"""Quantize to 8 or 4 bits, symmetrically, with one scale for each scope.

    .. math:: d = (x - vector) R, \quad a = \max(r \max_{scope} |d|, 2^{-64}), \quad
              code = round(d \cdot (n / a \cdot r)), \quad scale = a / n

    with R the rotation but for its factor r, or both 1, n = 127 or 7 and integers, or n = 448 and
    e4m3. Every operation is one
    float32 operation, rounded to nearest even, which is what makes the result reproducible on a
    GPU. ``|code| <= n`` always. Where a scope holds NaN or an infinity, its scale is NaN or
    infinite and the codes of those elements are 0.

    Parameters
    ----------
    x : array_like of float [batch, head, token, head_dim]
    scope : {"token", "group", "block", "thread_q", "thread_k", "sorted", "channel", "tensor"}
        Elements that share a scale, always inside one (batch, head). "thread_q" and "thread_k" are
        SageAttention2's (arXiv 2411.10958, section 3.2): rows of Q that are equal modulo 8 in every
        32, and keys whose pairs are equal modulo 4 in every 64. "sorted" is that of `sorting`.
    block : int
        Tokens of a block, for the scope "block", aligned at token 0; channels of a group, for the
        scope "group".
    vector : ndarray of float32 [batch, head, head_dim], optional
        Subtracted from every token; see `smoothing.smoothing_vector`.
    rotated : bool
        See `rotation.rotate`.
    factor_first : bool
        Whether r multiplies d instead, before anything else, as where V is rotated by a kernel of
        its own.
    rounded : bool
        With False, codes are left unrounded in float64: the exact values in units of the scale.
    to : {"int8", "int4", "fp8"}
        Type of the codes; "fp8" is e4m3. 4-bit codes are kept one to a byte, as int8.
    order : ndarray of uint8 [batch, head, block, 128], optional
        Of sorted tokens, by default that of columns: `sorting.natural_order`.
    sizes : ndarray of float32 [batch, head, token], optional
        Of sorted tokens, what counts as the largest magnitude of each; by default what it is.

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
    if scope == "group" and x.shape[3] % block:
        raise ArgumentError("block", block, f"a divisor of the {x.shape[3]} channels")
    if vector is not None and vector.shape != (*x.shape[:2], x.shape[3]):
        raise ArgumentError("vector.shape", vector.shape, f"[batch, head, head_dim] of x {x.shape}")
    if scope == "sorted" and order is None:
        order = natural_order(*x.shape[:3])
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        d, r = _values(x, vector, rotated, factor_first)
        if order is None:
            amax = _amax(d, scope, block)
        else:
            of_token = np.max(np.abs(d), axis=-1, initial=0.0) if sizes is None else sizes
            amax = _sorted_amax(of_token, order)
        a: Float32Array = np.maximum(r * amax, np.float32(AMAX_FLOOR))
        largest = np.float32(LARGEST_CODE[to])
        scale = a / largest
        if rounded:
            steps = d * spread(largest / a * r, scope, block, d.shape[2])
            steps = np.where(np.isnan(steps), np.float32(0), steps)
            codes = round_e4m3(steps) if to == "fp8" else np.rint(steps).astype(np.int8)
            return Quantized(codes, scale, scope, block, vector, rotated, order)
        exact = x.astype(np.float64) - (0.0 if vector is None else vector[:, :, None, :])
        exact = rotate_exactly(exact) if rotated else exact
        exact = exact / spread(scale, scope, block, d.shape[2])
        codes = np.nan_to_num(exact, nan=0.0)
        return Quantized(codes, scale, scope, block, vector, rotated, order)


def token_amax(
    x: ArrayLike, vector: NDArray[np.float32] | None = None, rotated: bool = False
) -> Float32Array:
    """Return the largest magnitude of what is quantized of each token [batch, head, token]."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        d, r = _values(floating("x", x), vector, rotated, factor_first=False)
        amax: Float32Array = r * np.max(np.abs(d), axis=-1, initial=0.0)
    return amax


def _values(
    x: NDArray[np.floating], vector: NDArray[np.float32] | None, rotated: bool, factor_first: bool
) -> tuple[Float32Array, np.float32]:
    """Return what is quantized, and the factor of a rotation that it still lacks."""
    d = as_float32(x)
    if vector is not None:
        d = d - vector.astype(np.float32)[:, :, None, :]
    if not rotated:
        return d, np.float32(1)
    d, r = turn(d), rotation_factor(d.shape[3])
    return (d * r, np.float32(1)) if factor_first else (d, r)


def _sorted_amax(of_token: Float32Array, order: NDArray[np.uint8]) -> Float32Array:
    """Largest magnitude of what shares each token's scale, from that of tokens; NaN wins."""
    scopes = scopes_of_order(order, of_token.shape[2])
    amax: Float32Array = np.empty_like(of_token)
    for at in np.ndindex(of_token.shape[:2]):
        of_scope = np.zeros(scopes[at].max(initial=-1) + 1, np.float32)
        np.maximum.at(of_scope, scopes[at], of_token[at])
        amax[at] = of_scope[scopes[at]]
    return amax


def _amax(d: Float32Array, scope: Scope, block: int) -> Float32Array:
    """Largest magnitude in each scope, 0 for an empty one; NaN wins."""
    size = np.abs(d)
    if scope in ("channel", "tensor"):
        of_head: Float32Array = np.max(size, axis=2 if scope == "channel" else (2, 3), initial=0.0)
        return of_head
    if scope == "group":
        size = size.reshape(*d.shape[:3], d.shape[3] // block, block)
    of_token: Float32Array = np.max(size, axis=-1, initial=0.0)
    scopes, count = scope_of_tokens(d.shape[2], scope, block)
    amax = np.zeros((*d.shape[:2], count, *of_token.shape[3:]), np.float32)
    of_scope, of_token = np.moveaxis(amax, 2, 0), np.moveaxis(of_token, 2, 0)
    np.maximum.at(of_scope, scopes, of_token)
    return amax
