"""The arrays of a KV cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import KVGeometry

__all__ = ["MemoryArrays"]


class MemoryArrays:
    """The arrays of a cache; those of NumPy in host memory.

    Parameters
    ----------
    geometry : KVGeometry
    smooth_k : bool
    xp : module
        NumPy or CuPy.

    Attributes
    ----------
    units : ndarray of uint8 `geometry.units_shape`
    lengths : ndarray of int32 [batch]
    limits : ndarray of int32 [batch]
        Tokens that a sequence has room for.
    pages : ndarray of int32 [batch, pages_per_sequence], or None
        The page table; entries beyond a sequence's limit mean nothing, but are pages of the cache.
    k_offset : ndarray of float32 [batch, num_kv_heads, head_dim], or None
    bare : ndarray of int32 [batch], or None
        How many first keys of a sequence it is not subtracted from.
    fixed : ndarray of int32 [batch], or None
        Not 0 where `k_offset` is what it stays, whatever comes: of sequences that have lost tokens
        which others follow. None without pages or `k_offset`.
    fine : ndarray of uint8 `geometry.fine_shape`, or None
        Lower halves of nested codes.
    coarse : ndarray of int32 [batch], or None
        The first unit of a sequence that has them, but for `geometry.first_units` at its beginning.
    """

    def __init__(self, geometry: KVGeometry, smooth_k: bool, xp: Any = np) -> None:
        self.geometry = geometry
        self.xp = xp
        batch, heads, head_dim = geometry.batch, geometry.num_kv_heads, geometry.kv_format.head_dim
        self.units = xp.zeros(geometry.units_shape, np.uint8)
        self.lengths = xp.zeros(batch, np.int32)
        self.limits = xp.zeros(batch, np.int32)
        self.pages: Any = None
        if geometry.page_size:
            self.pages = xp.zeros((batch, geometry.pages_per_sequence), np.int32)
        self.k_offset: Any = None
        self.bare: Any = None
        self.fixed: Any = None
        if smooth_k:
            self.k_offset = xp.zeros((batch, heads, head_dim), np.float32)
            self.bare = xp.zeros(batch, np.int32)
            if geometry.page_size:
                self.fixed = xp.zeros(batch, np.int32)
        self.fine: Any = None
        self.coarse: Any = None
        if geometry.kv_format.nested:
            self.fine = xp.zeros(geometry.fine_shape, np.uint8)
            self.coarse = xp.zeros(batch, np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(int(x.nbytes) for x in self.arrays())

    def arrays(self) -> list[Any]:
        """Return those of the cache's arrays that it has."""
        arrays = (
            *(self.units, self.lengths, self.limits, self.pages),
            *(self.k_offset, self.bare, self.fixed, self.fine, self.coarse),
        )
        return [x for x in arrays if x is not None]

    def of_sequences(self) -> list[Any]:
        """Return those, but for units and lengths, whose first axis is that of the sequences."""
        arrays = (self.k_offset, self.bare, self.fixed, self.fine, self.coarse)
        return [x for x in arrays if x is not None]

    def sent(self, x: NDArray[Any]) -> Any:
        """Return an array of the host as one of the library."""
        return x

    def to_host(self, x: Any) -> Any:
        """Return an array of the library as one of the host."""
        return x
