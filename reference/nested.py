"""Codes of 8 bits whose upper halves are codes of 4: those of a KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32Array
from .quantized import AMAX_FLOOR

__all__ = ["NestedCodes", "nested_codes", "scale_and_zero", "words"]

_LARGEST = np.float32(127)

# Bytes of codes, and what is left of one without its lower half.
_LOWEST, _HIGHEST = -128.0, 127.0
_UPPER = np.int8(-16)

# The lower half of a float32, which bfloat16 has not, and what stands for any NaN.
_LOWER_BITS = np.uint32(0xFFFF)
_NAN_BITS = np.uint32(0x7FFF0000)


@dataclass(frozen=True, eq=False)
class NestedCodes:
    """Tokens in 8 bits, ``codes · fine_scale + fine_zero``, and what they are without lower halves.

    Attributes
    ----------
    codes : ndarray of int8 [batch, head, token, head_dim]
    fine_scale, fine_zero : ndarray of float32 [batch, head, token, group]
        Of the codes. All scales and zero points are bfloat16 numbers.
    scale, zero : ndarray of float32 [batch, head, token, group]
        Of `upper`.
    """

    codes: NDArray[np.int8]
    fine_scale: Float32Array
    fine_zero: Float32Array
    scale: Float32Array
    zero: Float32Array

    @property
    def upper(self) -> NDArray[np.int8]:
        """The codes without their lower halves: multiples of 16, rounded down."""
        return self.codes & _UPPER


def nested_codes(x: Float32Array, groups: int) -> NestedCodes:
    r"""Quantize elements, of which each token has some groups with scales of their own.

    For a group of n channels, with b that rounds to bfloat16 and b⁺ that rounds up,

    .. math:: z = b(\min x / 2 + \max x / 2), \quad a = \max(\max x - z, z - \min x, 2^{-64}),
              \quad s = b^+(a / 127), \quad c = round((x - z) \cdot (1 / s))

    are the fine zero point, scale and codes, and nothing is cut off. Of the upper halves
    :math:`u = 16 \lfloor c / 16 \rfloor`

    .. math:: s' = b(s \cdot var(c) / cov(c, u)), \quad
              z' = b(z + s \cdot mean(c) - s' \cdot mean(u))

    with :math:`n^2 var` and :math:`n^2 cov` whole numbers. That makes ``u · s' + z'`` unbiased: its
    mean over the group, and its product with the deviations of x from theirs, are those of the
    codes. A scale that made the squared error least would shrink keys, and with them logits, by
    some percent, which costs more than the error that it saves; the correction is that of RaBitQ
    (arXiv 2405.12497). Every operation is one float32 operation, rounded to nearest even. Scales
    of a group with NaN or an infinity are NaN, and its codes 0.

    Parameters
    ----------
    x : ndarray of float32 [batch, head, token, head_dim]
    groups : int
    """
    n = x.shape[3] // groups
    y = x.reshape(*x.shape[:3], groups, n)
    with np.errstate(all="ignore"):
        low, high = y.min(axis=4), y.max(axis=4)
        half = np.float32(0.5)
        middle = half * low + half * high
        fine_zero = _bfloat16(middle + np.float32(0))  # which has no sign if it is 0
        reach = np.maximum(np.maximum(high - fine_zero, fine_zero - low), np.float32(AMAX_FLOOR))
        fine_scale = _bfloat16_up(reach / _LARGEST)
        steps = np.rint((y - fine_zero[..., None]) * (np.float32(1) / fine_scale)[..., None])
        steps = np.where(np.isnan(steps), np.float32(0), np.clip(steps, _LOWEST, _HIGHEST))
        codes = steps.astype(np.int8)
        scale, zero = _of_upper(codes, fine_scale, fine_zero)
    return NestedCodes(codes.reshape(x.shape), fine_scale, fine_zero, scale, zero)


def _of_upper(
    codes: NDArray[np.int8], fine_scale: Float32Array, fine_zero: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return scale and zero point of the upper halves of codes [..., channel]."""
    c = codes.astype(np.int64)
    u = (codes & _UPPER).astype(np.int64)
    n, of_c, of_u = c.shape[-1], c.sum(axis=-1), u.sum(axis=-1)
    variance = n * (c * c).sum(axis=-1) - of_c * of_c
    covariance = n * (c * u).sum(axis=-1) - of_c * of_u
    ratio = variance.astype(np.float32) / np.maximum(covariance, 1).astype(np.float32)
    ratio = np.where(covariance > 0, ratio, np.float32(1))
    scale = _bfloat16(fine_scale * ratio)
    count = np.float32(n)
    mean_c, mean_u = of_c.astype(np.float32) / count, of_u.astype(np.float32) / count
    zero = _bfloat16((fine_zero + fine_scale * mean_c) - scale * mean_u)
    return scale, zero


def words(scale: Float32Array, zero: Float32Array) -> NDArray[np.uint32]:
    """Return pairs of bfloat16 numbers in words, the scale in the lower half; of any library."""
    pairs: NDArray[np.uint32] = scale.view("uint32") >> np.uint32(16)
    pairs |= zero.view("uint32") & 0xFFFF0000
    return pairs


def scale_and_zero(pairs: NDArray[np.uint32]) -> tuple[Float32Array, Float32Array]:
    """Undo `words`."""
    scale, zero = pairs << 16, pairs & 0xFFFF0000
    return scale.astype("uint32").view("float32"), zero.astype("uint32").view("float32")


def _bfloat16(x: Float32Array) -> Float32Array:
    """Round to nearest even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    return _whole(bits + (np.uint32(0x7FFF) + odd), x)


def _bfloat16_up(x: Float32Array) -> Float32Array:
    """Round positive numbers up."""
    return _whole(np.ascontiguousarray(x).view(np.uint32) + _LOWER_BITS, x)


def _whole(bits: NDArray[np.uint32], x: Float32Array) -> Float32Array:
    kept = np.where(np.isnan(x), _NAN_BITS, bits & ~_LOWER_BITS)
    rounded: Float32Array = kept.astype(np.uint32).view(np.float32)
    return rounded
