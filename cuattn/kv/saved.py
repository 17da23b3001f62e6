"""What is in the file of a KV cache, and whether it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.sizes import ceil_div
from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS
from ..reference.kv_cache import fine_units
from ..reference.kv_offsets import FIRST_TOKENS
from .evicted import Evicted
from .geometry import KVGeometry
from .sharing import check_numbered

__all__ = ["Saved", "checked"]


@dataclass(frozen=True, eq=False)
class Saved:
    """The contents of a file.

    Attributes
    ----------
    geometry : KVGeometry
    lengths : ndarray of int64 [batch]
    k_offset : ndarray of float32 [batch, num_kv_heads, head_dim], or None
    bare : ndarray of int32 [batch], or None
    units : list of ndarray of uint8 [num_kv_heads, unit, unit_bytes]
        Of each sequence those with tokens.
    coarse : ndarray of int64 [batch], or None
        Of nested codes, see `Memory`.
    fine : list of ndarray of uint8 [num_kv_heads, unit, unit_bytes]
        Lower halves of those units that have them; nothing of other codes.
    table : ndarray of int32 [batch, pages_per_sequence], or None
        If sequences share pages, which ones are the same: numbers from 0 on, -1 where there is
        none.
    evicted : Evicted or None
        As in `HostState`.
    """

    geometry: KVGeometry
    lengths: NDArray[np.int64]
    k_offset: NDArray[np.float32] | None
    bare: NDArray[np.int32] | None
    units: list[NDArray[np.uint8]]
    coarse: NDArray[np.int64] | None
    fine: list[NDArray[np.uint8]]
    table: NDArray[np.int32] | None
    evicted: Evicted | None


def checked(geometry: KVGeometry, arrays: dict[str, NDArray[Any]]) -> Saved:
    """Return what the arrays of a file are, when they are those of a cache with a geometry.

    Raises
    ------
    ArgumentError
        Naming the array that is not.
    """
    batch, heads, kv_format = geometry.batch, geometry.num_kv_heads, geometry.kv_format
    lengths = _array(arrays, "lengths", (batch,), np.int32)
    if not 0 <= lengths.min() <= lengths.max() <= geometry.capacity:
        raise ArgumentError("lengths", lengths.tolist(), f"from 0 to {geometry.capacity}")
    counts = list(map(geometry.used_units, lengths.tolist()))
    table = evicted = None
    if geometry.page_size:
        of_sequences = [ceil_div(n, geometry.page_units) for n in counts]
        if "pages" in arrays:
            table = _array(arrays, "pages", (batch, geometry.pages_per_sequence), np.int32)
            check_numbered(table, of_sequences, geometry.num_pages)
        elif sum(of_sequences) > geometry.num_pages:
            raise ArgumentError("lengths", lengths.tolist(), f"within {geometry.num_pages} pages")
        if "evicted" in arrays:
            evicted = Evicted(*_array(arrays, "evicted", (2, batch), np.int64))
            if min(map(np.min, evicted)) < 0 or (evicted.before > lengths).any():
                expected = f"tokens, and no more before them than the {lengths.tolist()}"
                raise ArgumentError("evicted", np.stack(evicted).tolist(), expected)
    units = [
        _array(arrays, f"units.{b}", (heads, count, kv_format.unit_bytes), np.uint8)
        for b, count in enumerate(counts)
    ]
    k_offset = bare = None
    if "k_offset" in arrays:
        shape = (batch, heads, kv_format.head_dim)
        k_offset = _array(arrays, "k_offset", shape, np.float32)
        bare = _array(arrays, "bare", (batch,), np.int32)
        has_lost = np.zeros(batch, np.bool_) if evicted is None else evicted.tokens > 0
        right = np.isin(bare, (0, FIRST_TOKENS)) | (
            has_lost & (bare >= 0) & (bare % UNIT_TOKENS == 0)
        )
        if not right.all():
            raise ArgumentError("bare", bare.tolist(), f"each 0 or {FIRST_TOKENS}")
    coarse, fine = None, []
    if kv_format.nested:
        coarse = _array(arrays, "coarse", (batch,), np.int32).astype(np.int64)
        first, places = geometry.first_units, geometry.recent_units
        if ((coarse < 0) | (coarse > counts) | (np.array(counts) - coarse > first + places)).any():
            expected = f"from 0 to {counts}, and no more than {places} below"
            raise ArgumentError("coarse", coarse.tolist(), expected)
        fine = [
            _array(arrays, f"fine.{b}", (heads, has.sum(), kv_format.unit_bytes), np.uint8)
            for b, has in enumerate(map(fine_units, lengths.tolist(), coarse, [first] * batch))
        ]
    lengths = lengths.astype(np.int64)
    return Saved(geometry, lengths, k_offset, bare, units, coarse, fine, table, evicted)


def _array(arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    if name not in arrays:
        raise ArgumentError(name, None, f"in a file with the arrays {sorted(arrays)}")
    x = arrays[name]
    if x.shape != shape or x.dtype != dtype:
        raise ArgumentError(name, x, f"{np.dtype(dtype).name} {list(shape)}")
    return x
