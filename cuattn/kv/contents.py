"""What a KV cache holds: the units of a sequence, codes on the host, and what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import numpy_dtype
from ..common.sizes import ceil_div
from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS
from ..operands.operand import DTYPES
from ..reference.kv_cache import CachedOperand
from ..reference.rotation import butterflies, hadamard_block, rotation_factor
from ..reference.rotation import signs as signs_of
from .fine import fine_tokens, joined, read_fine
from .memory import Memory
from .units import Tokens, unpack_units

__all__ = ["cached_operands", "read_tokens", "read_units", "values", "write_units"]


def read_units(memory: Memory, sequence: int, first: int, last: int) -> Any:
    """Return units of a sequence, uint8 [1, kv head, last - first, unit_bytes]."""
    if memory.pages is None:
        return memory.units[sequence : sequence + 1, :, first:last]
    size = memory.geometry.page_units
    begin = first // size
    pages = memory.units[memory.pages[sequence, begin : ceil_div(last, size)]]
    count, heads, _, nbytes = pages.shape
    whole = pages.swapaxes(0, 1).reshape(1, heads, count * size, nbytes)
    return whole[:, :, first - begin * size : last - begin * size]


def write_units(memory: Memory, sequence: int, first: int, units: Any) -> None:
    """Replace units of a sequence from unit `first` on, in pages that the memory's table has."""
    row = None if memory.pages is None else memory.to_host(memory.pages[sequence])
    size = memory.geometry.page_units
    at, end = first, first + units.shape[2]
    while at < end:
        page = sequence if row is None else int(row[at // size])
        slot = at % size
        count = min(size - slot, end - at)
        memory.units[page, :, slot : slot + count] = units[0, :, at - first : at - first + count]
        at += count


def read_tokens(memory: Memory, sequence: int, length: int) -> tuple[Tokens, Tokens]:
    """Return the first tokens of a sequence: K and V, whose batch is 1."""
    units = read_units(memory, sequence, 0, ceil_div(length, UNIT_TOKENS))
    kv_format = memory.geometry.kv_format
    k, v = unpack_units(units, kv_format)
    if kv_format.nested:
        fine = unpack_units(read_fine(memory, sequence, length), kv_format)
        is_fine = fine_tokens(memory, sequence, length)
        k, v = (joined(x, y, is_fine) for x, y in zip((k, v), fine, strict=True))
    return _first(k, length), _first(v, length)


def _first(x: Tokens, length: int) -> Tokens:
    zero = None if x.zero is None else x.zero[:, :, :length]
    return Tokens(x.codes[:, :, :length], x.scale[:, :, :length], zero)


def cached_operands(
    memory: Memory, lengths: NDArray[np.int64]
) -> tuple[CachedOperand, CachedOperand]:
    """Copy codes, scales and zero points to the host.

    Parameters
    ----------
    memory : Memory
    lengths : ndarray of int [batch]
        Tokens of each sequence.

    Returns
    -------
    k, v : CachedOperand
        Of the longest sequence's tokens; all is 0 beyond the length of another.
    """
    geometry = memory.geometry
    kv_format = geometry.kv_format
    of_tokens = (geometry.batch, geometry.num_kv_heads, int(lengths.max()))
    sizes = (kv_format.padded, kv_format.k_groups, kv_format.padded, kv_format.v_groups)
    k_codes, k_scale, v_codes, v_scale = (
        np.zeros((*of_tokens, size), dtype)
        for size, dtype in zip(sizes, (np.int8, np.float32) * 2, strict=True)
    )
    zeros = [
        np.zeros_like(scale) if has_zeros else None
        for scale, has_zeros in ((k_scale, kv_format.nested), (v_scale, kv_format.has_v_zero))
    ]
    for b in np.flatnonzero(lengths):
        n = int(lengths[b])
        k, v = read_tokens(memory, int(b), n)
        k_codes[b, :, :n], k_scale[b, :, :n] = memory.to_host(k.codes), memory.to_host(k.scale)
        v_codes[b, :, :n], v_scale[b, :, :n] = memory.to_host(v.codes), memory.to_host(v.scale)
        for zero, x in zip(zeros, (k, v), strict=True):
            if zero is not None:
                zero[b, :, :n] = memory.to_host(x.zero)
    vector, bare = (
        None if x is None else memory.to_host(x).copy() for x in (memory.k_offset, memory.bare)
    )
    return (
        CachedOperand(
            k_codes, k_scale, zeros[0], vector, bare, kv_format.rotate, kv_format.head_dim
        ),
        CachedOperand(v_codes, v_scale, zeros[1], head_dim=kv_format.head_dim),
    )


def values(memory: Memory, lengths: NDArray[np.int64], dtype: str) -> tuple[Any, Any]:
    """Return the values of K and V as arrays of the cache's library.

    Parameters
    ----------
    memory : Memory
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
    geometry, kind = memory.geometry, numpy_dtype(dtype)
    head_dim, padded = geometry.kv_format.head_dim, geometry.kv_format.padded
    shape = (geometry.batch, geometry.num_kv_heads, int(lengths.max()), head_dim)
    k_values, v_values = memory.xp.zeros(shape, kind), memory.xp.zeros(shape, kind)
    signs = None
    if geometry.kv_format.rotate:
        signs = memory.sent((signs_of(padded) * rotation_factor(padded)).astype(np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        for b in np.flatnonzero(lengths).tolist():
            n = int(lengths[b])
            k, v = read_tokens(memory, b, n)
            keys = k.values()
            if signs is not None:
                keys = butterflies(keys, hadamard_block(padded)) * signs
            keys = keys[..., :head_dim]
            if memory.k_offset is not None:
                keys[:, :, int(memory.bare[b]) :] += memory.k_offset[b : b + 1, :, None]
            k_values[b, :, :n], v_values[b, :, :n] = keys[0], v.values()[0, ..., :head_dim]
    return k_values, v_values
