"""What a KV cache holds: its codes on the host, and the values that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import numpy_dtype
from ..errors import ArgumentError
from ..operands.operand import DTYPES
from ..reference.kv_cache import CachedOperand
from .store import Store

__all__ = ["cached_operands", "values"]


def cached_operands(
    store: Store, lengths: NDArray[np.int64]
) -> tuple[CachedOperand, CachedOperand]:
    """Copy codes, scales and zero points to the host.

    Parameters
    ----------
    store : Store
    lengths : ndarray of int [batch]
        Tokens of each sequence.

    Returns
    -------
    k, v : CachedOperand
        Of the longest sequence's tokens; all is 0 beyond the length of another.
    """
    geometry = store.geometry
    kv_format = geometry.kv_format
    of_tokens = (geometry.batch, geometry.num_kv_heads, int(lengths.max()))
    sizes = (kv_format.head_dim, kv_format.k_groups, kv_format.head_dim, kv_format.v_groups)
    k_codes, k_scale, v_codes, v_scale = (
        np.zeros((*of_tokens, size), dtype)
        for size, dtype in zip(sizes, (np.int8, np.float32) * 2, strict=True)
    )
    zero = np.zeros_like(v_scale) if kv_format.v_zero else None
    for b in np.flatnonzero(lengths):
        n = int(lengths[b])
        k, v = store.tokens(int(b), n)
        k_codes[b, :, :n], k_scale[b, :, :n] = store.to_host(k.codes), store.to_host(k.scale)
        v_codes[b, :, :n], v_scale[b, :, :n] = store.to_host(v.codes), store.to_host(v.scale)
        if zero is not None:
            zero[b, :, :n] = store.to_host(v.zero)
    vector = None if store.k_offset is None else store.to_host(store.k_offset).copy()
    return CachedOperand(k_codes, k_scale, None, vector), CachedOperand(v_codes, v_scale, zero)


def values(store: Store, lengths: NDArray[np.int64], dtype: str) -> tuple[Any, Any]:
    """Return the values of K and V as arrays of the cache's library.

    Parameters
    ----------
    store : Store
    lengths : ndarray of int [batch]
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    k, v : ndarray [batch, num_kv_heads, longest length, head_dim]
        0 beyond the length of a sequence.

    Raises
    ------
    ArgumentError
        For another type.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ArgumentError("dtype", dtype, f"one of {list(DTYPES)}")
    geometry, kind = store.geometry, numpy_dtype(dtype)
    shape = (geometry.batch, geometry.num_kv_heads, int(lengths.max()), geometry.kv_format.head_dim)
    k_values, v_values = store.xp.zeros(shape, kind), store.xp.zeros(shape, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for b in np.flatnonzero(lengths).tolist():
            n = int(lengths[b])
            k, v = store.tokens(b, n)
            keys = k.values()
            if store.k_offset is not None:
                keys += store.k_offset[b : b + 1, :, None]
            k_values[b, :, :n], v_values[b, :, :n] = keys[0], v.values()[0]
    return k_values, v_values
