"""What a quantized KV cache holds: codes of tokens, their scales, zero points and the offset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..kv_format import KVFormat
from .arrays import Float32Array, FloatArray, as_float32, floating, whole_counts
from .quantized import AMAX_FLOOR, quantize
from .smoothing import sample, smoothing_vector

__all__ = ["CachedOperand", "offsets", "quantize_keys", "quantize_values"]

# With a zero point, codes of 4 bits are steps 0 ... 15 of the range of a group, less 8.
_STEPS = np.float32(15)
_MIDDLE = 8


@dataclass(frozen=True, eq=False)
class CachedOperand:
    """K or V of a cache: ``codes · scale + zero + vector``, tokens in their order.

    Attributes
    ----------
    codes : ndarray of int8 [batch, num_kv_heads, token, head_dim]
        In -127 ... 127, or of 4 bits in -7 ... 7, with zero points in -8 ... 7.
    scale : ndarray of float32 [batch, num_kv_heads, token, group]
        One for each group of neighbouring channels, of which there may be one.
    zero : ndarray of float32 [batch, num_kv_heads, token, group], or None
        What V with zero points has where its codes are 0.
    vector : ndarray of float32 [batch, num_kv_heads, head_dim], or None
        The offset that was subtracted from every key.
    """

    codes: NDArray[np.int8]
    scale: Float32Array
    zero: Float32Array | None = None
    vector: Float32Array | None = None

    def __post_init__(self) -> None:
        codes, scale = self.codes, self.scale
        if codes.ndim != 4 or codes.dtype != np.int8:
            raise ArgumentError("codes", codes, "int8 [batch, num_kv_heads, token, head_dim]")
        fits = scale.ndim == 4 and scale.shape[:3] == codes.shape[:3] and scale.shape[3]
        if not fits or codes.shape[3] % scale.shape[3]:
            raise ArgumentError("scale", scale, f"[batch, head, token, group] of {codes.shape}")
        if self.zero is not None and self.zero.shape != scale.shape:
            raise ArgumentError("zero", self.zero, f"of the shape {scale.shape} of scale")
        of_heads = (*codes.shape[:2], codes.shape[3])
        if self.vector is not None and self.vector.shape != of_heads:
            raise ArgumentError("vector", self.vector, f"of shape {of_heads}")

    @property
    def group(self) -> int:
        """Channels that share a scale."""
        channels: int = self.codes.shape[3] // self.scale.shape[3]
        return channels

    def dequantize(self) -> FloatArray:
        """Return the represented values [batch, num_kv_heads, token, head_dim]."""
        with np.errstate(invalid="ignore"):
            scale = np.repeat(self.scale, self.group, axis=3)
            x: FloatArray = self.codes.astype(np.float64) * scale
            if self.zero is not None:
                x += np.repeat(self.zero, self.group, axis=3)
            return x if self.vector is None else x + self.vector[:, :, None, :]


def offsets(k: ArrayLike, counts: ArrayLike | None = None) -> Float32Array:
    """Return what is subtracted from the keys of sequences whose first tokens are these.

    Parameters
    ----------
    k : array_like of float [batch, num_kv_heads, token, head_dim]
    counts : array_like of int [batch], optional
        How many of the tokens of each sequence there are; the others are not read.

    Returns
    -------
    ndarray of float32 [batch, num_kv_heads, head_dim]
        Of each sequence the mean of at most 512 evenly spaced tokens, `smoothing.sample`. 0 where
        there is no token, or no finite mean.

    Raises
    ------
    ArgumentError
        If `k` has no four axes or `counts` do not fit them.
    """
    k = _tokens("k", k)
    vectors = np.zeros((*k.shape[:2], k.shape[3]), np.float32)
    for b, count in enumerate(whole_counts("counts", counts, k.shape[0], k.shape[2])):
        vectors[b] = smoothing_vector(sample(k[b : b + 1, :, :count]), "mean")
    return vectors


def quantize_keys(
    k: ArrayLike, kv_format: KVFormat, vector: Float32Array | None = None
) -> CachedOperand:
    """Quantize keys as the cache does: `quantized.quantize` with a scale for each token or group.

    Parameters
    ----------
    k : array_like of float [batch, num_kv_heads, token, head_dim]
    kv_format : KVFormat
    vector : ndarray of float32 [batch, num_kv_heads, head_dim], optional
        Subtracted from every key in float32; see `offsets`.

    Raises
    ------
    ArgumentError
        For arrays that do not fit the format or each other.
    """
    k = _tokens("k", k, kv_format.head_dim)
    return _symmetric(k, kv_format.k_bits, kv_format.k_groups, vector)


def quantize_values(v: ArrayLike, kv_format: KVFormat) -> CachedOperand:
    r"""Quantize values as the cache does, with zero points if the format has any.

    Without zero points this is `quantized.quantize`. With them, for a group of channels of a token,

    .. math:: r = \max(\max x - \min x, 2^{-64}), \quad scale = r / 15, \quad
              code = round((x - \min x) \cdot (15 / r)) - 8, \quad zero = \min x + 8 \cdot scale

    Every operation is one float32 operation, rounded to nearest even. Where a group holds NaN or an
    infinity, or its range is beyond float32, its scale is NaN or infinite; codes that would be NaN
    are 0. These are the asymmetric codes of KIVI (arXiv 2402.02750), but what is kept is the value
    of code 0 instead of the minimum, so that codes are signed.

    Parameters
    ----------
    v : array_like of float [batch, num_kv_heads, token, head_dim]
    kv_format : KVFormat

    Raises
    ------
    ArgumentError
        If `v` does not fit the format.
    """
    v = _tokens("v", v, kv_format.head_dim)
    if not kv_format.v_zero:
        return _symmetric(v, kv_format.v_bits, kv_format.v_groups, None)
    groups = kv_format.v_groups
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x = as_float32(v).reshape(*v.shape[:3], groups, kv_format.head_dim // groups)
        low = x.min(axis=4)
        r = np.maximum(x.max(axis=4) - low, np.float32(AMAX_FLOOR))
        scale = r / _STEPS
        # Not above 15 and a rounding: no element is further from the minimum than the maximum is.
        steps = np.rint((x - low[..., None]) * (_STEPS / r)[..., None]) - np.float32(_MIDDLE)
        codes = np.where(np.isnan(steps), np.float32(0), steps).astype(np.int8)
        zero = low + np.float32(_MIDDLE) * scale
    return CachedOperand(codes.reshape(v.shape), scale, zero)


def _tokens(name: str, x: ArrayLike, head_dim: int | None = None) -> NDArray[np.floating]:
    array = floating(name, x)
    if array.ndim != 4 or head_dim not in (None, array.shape[3]):
        channels = "head_dim" if head_dim is None else head_dim
        expected = f"[batch, num_kv_heads, token, {channels}]"
        raise ArgumentError(f"{name}.shape", array.shape, expected)
    return array


def _symmetric(
    x: NDArray[np.floating], bits: int, groups: int, vector: Float32Array | None
) -> CachedOperand:
    made = quantize(
        x,
        scope="token" if groups == 1 else "group",
        block=x.shape[3] // groups,
        vector=vector,
        to="int8" if bits == 8 else "int4",
    )
    scale = made.scale.reshape(*x.shape[:3], groups)
    return CachedOperand(made.codes.astype(np.int8), scale, vector=made.vector)
