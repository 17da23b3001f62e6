"""K and V of a KV cache as attention of many queries takes them: codes of sorted keys."""

from __future__ import annotations

import numpy as np

from .arrays import Float32Array
from .kv_cache import CachedOperand
from .quantized import Quantized, quantize
from .rotation import rotate
from .sorting import sorted_order

__all__ = ["sorted_operands", "token_sizes"]

# Codes reach the ends of their range; those of 4 bits that are the upper halves of nested codes are
# multiples of 16.
_LARGEST = {8: 127.0, 4: 7.0}
_RANGES = {"codes": (-8.0, 7.0), "upper": (-128.0, 112.0), "whole": (-127.0, 127.0)}


def sorted_operands(
    k: CachedOperand,
    v: CachedOperand,
    length: int,
    *,
    k_bits: int = 8,
    v_bits: int = 8,
    is_fine: np.ndarray | None = None,
) -> tuple[Quantized, Quantized]:
    r"""Return the codes that attention takes of one sequence, in the scopes of the scheme "int8".

    What a cache has of a token, ``x = code * scale + zero``, is quantized again by
    `quantized.quantize`: each of the two operations rounded to float32, with the same order of keys
    as of arrays, but for what counts as the largest magnitude of a token. That follows from its
    scales and zero points (`token_sizes`), because its codes reach the ends of their range; so
    nothing is cut off, and kernels read codes once. Keys that have no offset get it here, rotated
    if keys are, and their magnitudes are what they are.

    Parameters
    ----------
    k, v : CachedOperand
        Of one sequence: a batch of 1.
    length : int
        Its tokens, at least 1; others are not read.
    k_bits, v_bits : {8, 4}
    is_fine : ndarray of bool [token], optional
        Of nested codes, which tokens have 8 bits.

    Returns
    -------
    k, v : Quantized
        Codes of K are of what `k.rotated` says, less `k.vector`. Channels that pad a head are as in
        the cache.
    """
    at = slice(None), slice(None), slice(length)
    fine = None if is_fine is None else is_fine[:length]
    with np.errstate(all="ignore"):
        keys, values = (_values(x, length) for x in (k, v))
        k_sizes, v_sizes = (
            token_sizes(x.scale[at], None if x.zero is None else x.zero[at], bits, fine)
            for x, bits in ((k, k_bits), (v, v_bits))
        )
        vector = k.vector
        if vector is not None:  # zero in the channels that pad codes
            padding = k.codes.shape[3] - vector.shape[2]
            vector = np.pad(vector, [(0, 0), (0, 0), (0, padding)])
        bare = 0 if k.bare is None or k.vector is None else min(int(k.bare[0]), length)
        if vector is not None and bare:
            offset = rotate(vector) if k.rotated else vector
            keys[:, :, :bare] -= offset[:, :, None]
            k_sizes[:, :, :bare] = np.abs(keys[:, :, :bare]).max(axis=3)
    order = sorted_order(k_sizes, v_sizes)
    made_k = quantize(keys, scope="sorted", order=order, sizes=k_sizes)
    made_v = quantize(values, scope="sorted", order=order, sizes=v_sizes)
    whole_k = Quantized(
        made_k.codes, made_k.scale, "sorted", made_k.block, vector, k.rotated, order
    )
    return whole_k, made_v


def token_sizes(
    scale: Float32Array, zero: Float32Array | None, bits: int, is_fine: np.ndarray | None
) -> Float32Array:
    """Return what counts as the largest magnitude of each token [batch, head, token].

    Parameters
    ----------
    scale, zero : ndarray of float32 [batch, head, token, group]
        The second is None of codes without zero points.
    bits : {8, 4}
    is_fine : ndarray of bool [token] or None
        None, unless codes are nested.
    """
    if zero is None:
        return _largest(scale * np.float32(_LARGEST[bits]))
    if is_fine is None:
        return _of_range(scale, zero, "codes")
    upper, whole = (_of_range(scale, zero, name) for name in ("upper", "whole"))
    return np.where(is_fine, whole, upper)


def _of_range(scale: Float32Array, zero: Float32Array, name: str) -> Float32Array:
    low, high = (np.float32(code) * scale + zero for code in _RANGES[name])
    return _largest(np.maximum(np.abs(low), np.abs(high)))


def _largest(of_groups: Float32Array) -> Float32Array:
    largest: Float32Array = of_groups.max(axis=3)
    return largest


def _values(x: CachedOperand, length: int) -> Float32Array:
    scale = np.repeat(x.scale[:, :, :length], x.group, axis=3)
    values: Float32Array = x.codes[:, :, :length].astype(np.float32) * scale
    if x.zero is not None:
        values += np.repeat(x.zero[:, :, :length], x.group, axis=3)
    return values
