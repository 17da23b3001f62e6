"""What a quantized KV cache holds: codes of tokens, their scales, zero points and the offset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS, KVFormat
from .arrays import Float32Array, FloatArray, as_float32, floating
from .nested import NestedCodes, nested_codes
from .quantized import AMAX_FLOOR, quantize
from .rotation import rotate, unrotate

__all__ = [
    "CachedOperand",
    "fine_units",
    "kept",
    "quantize_keys",
    "quantize_nested",
    "quantize_values",
]

# With a zero point, codes of 4 bits are steps 0 ... 15 of the range of a group, less 8.
_STEPS = np.float32(15)
_MIDDLE = 8

# Channels of V that padding repeats, the last ones.
_LAST = 16


@dataclass(frozen=True, eq=False)
class CachedOperand:
    """K or V of a cache: ``codes · scale + zero``, tokens in their order.

    Attributes
    ----------
    codes : ndarray of int8 [batch, num_kv_heads, token, channel]
        Channels beyond head_dim pad it. In -127 ... 127, or of 4 bits in -7 ... 7, with zero points
        in -8 ... 7. Of nested codes those of 8 bits, -128 ... 127, and of tokens that have 4 only
        multiples of 16.
    scale : ndarray of float32 [batch, num_kv_heads, token, group]
        One for each group of neighbouring channels, of which there may be one.
    zero : ndarray of float32 [batch, num_kv_heads, token, group], or None
        What operands with zero points have where their codes are 0.
    vector : ndarray of float32 [batch, num_kv_heads, head_dim], or None
        The offset that was subtracted from keys.
    bare : ndarray of int [batch], or None
        How many keys at the beginning of each sequence it was not subtracted from; None: of none.
    rotated : bool
        Whether that is of `rotation.rotate` of the rest.
    head_dim : int, optional
        Channels that are no padding, by default all.
    """

    codes: NDArray[np.int8]
    scale: Float32Array
    zero: Float32Array | None = None
    vector: Float32Array | None = None
    bare: NDArray[np.integer] | None = None
    rotated: bool = False
    head_dim: int | None = None

    def __post_init__(self) -> None:
        codes, scale = self.codes, self.scale
        if codes.ndim != 4 or codes.dtype != np.int8:
            raise ArgumentError("codes", codes, "int8 [batch, num_kv_heads, token, head_dim]")
        fits = scale.ndim == 4 and scale.shape[:3] == codes.shape[:3] and scale.shape[3]
        if not fits or codes.shape[3] % scale.shape[3]:
            raise ArgumentError("scale", scale, f"[batch, head, token, group] of {codes.shape}")
        if self.zero is not None and self.zero.shape != scale.shape:
            raise ArgumentError("zero", self.zero, f"of the shape {scale.shape} of scale")
        if self.head_dim is not None and not 1 <= self.head_dim <= codes.shape[3]:
            raise ArgumentError("head_dim", self.head_dim, f"from 1 to {codes.shape[3]}")
        of_heads = (*codes.shape[:2], self.channels)
        if self.vector is not None and self.vector.shape != of_heads:
            raise ArgumentError("vector", self.vector, f"of shape {of_heads}")

    @property
    def channels(self) -> int:
        """Channels of what is represented."""
        return self.codes.shape[3] if self.head_dim is None else self.head_dim

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
            x = (unrotate(x) if self.rotated else x)[..., : self.channels]
            if self.vector is not None:
                x += np.where(self.has_offset()[:, None, :, None], self.vector[:, :, None, :], 0)
            return x

    def of_sequence(self, b: int) -> CachedOperand:
        """Return sequence `b`, as a batch of 1."""
        here = slice(b, b + 1)
        return replace(
            self,
            codes=self.codes[here],
            scale=self.scale[here],
            zero=None if self.zero is None else self.zero[here],
            vector=None if self.vector is None else self.vector[here],
            bare=None if self.bare is None else self.bare[here],
        )

    def has_offset(self) -> NDArray[np.bool_]:
        """Return whether the offset was subtracted from keys, [batch, token]."""
        return _has_offset(self.codes.shape, None, self.bare)


def quantize_keys(
    k: ArrayLike,
    kv_format: KVFormat,
    vector: Float32Array | None = None,
    lengths: ArrayLike | None = None,
    bare: ArrayLike | None = None,
) -> CachedOperand:
    """Quantize keys as the cache does: `quantized.quantize` with a scale for each token or group.

    Parameters
    ----------
    k : array_like of float [batch, num_kv_heads, token, head_dim]
    kv_format : KVFormat
        Without nested codes.
    vector : ndarray of float32 [batch, num_kv_heads, head_dim], optional
        Subtracted from keys in float32; see `offsets`.
    lengths : array_like of int [batch], optional
        Tokens that are before these, by default none.
    bare : array_like of int [batch], optional
        How many first tokens the vector is not subtracted from, by default none; `bare_tokens`.

    Raises
    ------
    ArgumentError
        For arrays that do not fit the format or each other.
    """
    x = _less_offset(_tokens("k", k, kv_format.head_dim), kv_format, vector, lengths, bare)
    made = _symmetric(x, kv_format.k_bits, kv_format.k_groups)
    given = None if bare is None else np.asarray(bare)
    return CachedOperand(
        made.codes, made.scale, None, vector, given, kv_format.rotate, kv_format.head_dim
    )


def quantize_nested(
    k: ArrayLike,
    v: ArrayLike,
    kv_format: KVFormat,
    vector: Float32Array | None = None,
    lengths: ArrayLike | None = None,
    bare: ArrayLike | None = None,
) -> tuple[NestedCodes, NestedCodes]:
    """Quantize K and V to nested codes; the arguments are those of `quantize_keys`."""
    x = _less_offset(_tokens("k", k, kv_format.head_dim), kv_format, vector, lengths, bare)
    y = as_float32(_repeated(_tokens("v", v, kv_format.head_dim), kv_format))
    return nested_codes(x, kv_format.k_groups), nested_codes(y, kv_format.v_groups)


def kept(made: NestedCodes, is_fine: NDArray[np.bool_]) -> CachedOperand:
    """Return what a cache keeps of nested codes.

    Parameters
    ----------
    made : NestedCodes
        Of all tokens.
    is_fine : ndarray of bool [batch, token]
        Which tokens keep all 8 bits.
    """
    which = is_fine[:, None, :, None]
    return CachedOperand(
        np.where(which, made.codes, made.upper),
        np.where(which, made.fine_scale, made.scale),
        np.where(which, made.fine_zero, made.zero),
    )


def fine_units(length: int, coarse: int, first: int) -> NDArray[np.bool_]:
    """Return which units of a sequence have all of their nested codes' 8 bits.

    Parameters
    ----------
    length : int
        Tokens of the sequence.
    coarse : int
        The first unit of those that are new enough.
    first : int
        How many units are at the beginning that never lose them.
    """
    unit = np.arange(-(-length // UNIT_TOKENS))
    return (unit < first) | (unit >= coarse)


def _has_offset(
    shape: tuple[int, ...], lengths: ArrayLike | None, bare: ArrayLike | None
) -> NDArray[np.bool_]:
    """Return which tokens of [batch, head, token, head_dim] the offset is subtracted from."""
    older, few = (
        np.zeros((shape[0], 1), np.int64) if x is None else np.asarray(x).reshape(-1, 1)
        for x in (lengths, bare)
    )
    there: NDArray[np.bool_] = older + np.arange(shape[2]) >= few
    return there


def _less_offset(
    k: NDArray[np.floating],
    kv_format: KVFormat,
    vector: Float32Array | None,
    lengths: ArrayLike | None,
    bare: ArrayLike | None,
) -> Float32Array:
    """Return keys less their offset, rotated if the format says so."""
    x: Float32Array = as_float32(k)
    with np.errstate(over="ignore", invalid="ignore"):
        if vector is not None:
            if vector.shape != (*k.shape[:2], k.shape[3]):
                expected = f"[batch, num_kv_heads, head_dim] of k {k.shape}"
                raise ArgumentError("vector.shape", vector.shape, expected)
            has_offset = _has_offset(k.shape, lengths, bare)[:, None, :, None]
            x = np.where(has_offset, x - vector.astype(np.float32)[:, :, None, :], x)
        x = np.pad(x, [(0, 0)] * 3 + [(0, kv_format.padded - kv_format.head_dim)])
        return rotate(x) if kv_format.rotate else x


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
    v = _repeated(_tokens("v", v, kv_format.head_dim), kv_format)
    if not kv_format.v_zero:
        made = _symmetric(v, kv_format.v_bits, kv_format.v_groups)
        return replace(made, head_dim=kv_format.head_dim)
    groups = kv_format.v_groups
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x = as_float32(v).reshape(*v.shape[:3], groups, kv_format.padded // groups)
        low = x.min(axis=4)
        r = np.maximum(x.max(axis=4) - low, np.float32(AMAX_FLOOR))
        scale = r / _STEPS
        # Not above 15 and a rounding: no element is further from the minimum than the maximum is.
        steps = np.rint((x - low[..., None]) * (_STEPS / r)[..., None]) - np.float32(_MIDDLE)
        codes = np.where(np.isnan(steps), np.float32(0), steps).astype(np.int8)
        zero = low + np.float32(_MIDDLE) * scale
    return CachedOperand(codes.reshape(v.shape), scale, zero, head_dim=kv_format.head_dim)


def _tokens(name: str, x: ArrayLike, head_dim: int | None = None) -> NDArray[np.floating]:
    array = floating(name, x)
    if array.ndim != 4 or head_dim not in (None, array.shape[3]):
        channels = "head_dim" if head_dim is None else head_dim
        expected = f"[batch, num_kv_heads, token, {channels}]"
        raise ArgumentError(f"{name}.shape", array.shape, expected)
    return array


def _repeated(x: NDArray[np.floating], kv_format: KVFormat) -> NDArray[np.floating]:
    """Pad channels by the last ones, so that no range of a group grows."""
    channel = np.arange(kv_format.padded)
    last = kv_format.head_dim - _LAST + channel % _LAST
    return x[..., np.where(channel < kv_format.head_dim, channel, last)]


def _symmetric(x: NDArray[np.floating], bits: int, groups: int) -> CachedOperand:
    made = quantize(
        x,
        scope="token" if groups == 1 else "group",
        block=x.shape[3] // groups,
        to="int8" if bits == 8 else "int4",
    )
    scale = made.scale.reshape(*x.shape[:3], groups)
    return CachedOperand(made.codes.astype(np.int8), scale)
