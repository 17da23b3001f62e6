"""The memory of a KV cache, in whatever library its arrays are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.sizes import ceil_div
from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS
from .book import Book
from .geometry import KVGeometry
from .operands import QueryOptions
from .pages import Entries
from .units import Tokens, unpack_units

__all__ = ["Store"]


class Store(ABC):
    """Arrays of a cache, and what is done to them without a kernel.

    Parameters
    ----------
    geometry : KVGeometry
    smooth_k : bool
    xp : module
        NumPy or CuPy.

    Attributes
    ----------
    book : Book
        What the host knows of what is here.
    units : ndarray of uint8 `geometry.units_shape`
    lengths : ndarray of int32 [batch]
    limits : ndarray of int32 [batch]
        Tokens that a sequence has room for.
    pages : ndarray of int32 [batch, pages_per_sequence], or None
        The page table, with 0 where there is no page.
    k_offset : ndarray of float32 [batch, num_kv_heads, head_dim], or None
    """

    def __init__(self, geometry: KVGeometry, smooth_k: bool, xp: Any) -> None:
        self.geometry = geometry
        self.book = Book(geometry)
        self.xp = xp
        batch, heads, head_dim = geometry.batch, geometry.num_kv_heads, geometry.kv_format.head_dim
        self.units = xp.zeros(geometry.units_shape, np.uint8)
        self.lengths = xp.zeros(batch, np.int32)
        self.limits = xp.zeros(batch, np.int32)
        self.pages: Any = None
        if geometry.page_size:
            self.pages = xp.zeros((batch, geometry.pages_per_sequence), np.int32)
        self.k_offset: Any = None
        if smooth_k:
            self.k_offset = xp.zeros((batch, heads, head_dim), np.float32)
        self.set_limits()

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.units, self.lengths, self.limits, self.pages, self.k_offset)
        return sum(int(x.nbytes) for x in arrays if x is not None)

    @abstractmethod
    def append(self, k: Any, v: Any, counts: Any, layout: str, stream: Any) -> None:
        """Do what `KVCache.append` says."""

    @abstractmethod
    def attend(self, q: Any, options: QueryOptions, out: Any, stream: Any) -> Any:
        """Do what `KVCache.attend` says."""

    def sent(self, x: NDArray[Any]) -> Any:
        """Return an array of the host as one of the library."""
        return x

    def to_host(self, x: Any) -> Any:
        """Return an array of the library as one of the host."""
        return x

    def call_on(self, stream: Any) -> AbstractContextManager[object]:
        """Return a context for changes to the memory, on a caller's stream.

        Raises
        ------
        ArgumentError
            For a stream, of which there is none in host memory.
        """
        if stream is not None:
            raise ArgumentError("stream", stream, "None for a cache in host memory")
        return nullcontext()

    @abstractmethod
    def wait(self) -> None:
        """Wait until the memory has what was done to it."""

    def fetch(self) -> tuple[NDArray[np.int64], bool]:
        """Return the lengths, and whether an append has been refused since the last time."""
        return self.lengths.astype(np.int64), False

    @abstractmethod
    def forget_refusal(self) -> None:
        """Note that a refused append is of no interest any more."""

    def shorten(self, lengths: Any, stream: Any) -> None:
        """Shorten sequences to at most the lengths in an array of the GPU.

        Raises
        ------
        ArgumentError
            If it does not fit, or the cache is in host memory.
        """
        raise ArgumentError("lengths", lengths, "in host memory, as the cache is")

    def set_lengths(self, lengths: NDArray[np.int64]) -> None:
        """Write lengths to the memory."""
        self.lengths[...] = self.sent(lengths.astype(np.int32))

    def set_limits(self) -> None:
        """Write the book's limits to the memory."""
        self.limits[...] = self.sent(self.book.limits.astype(np.int32))

    def set_pages(self) -> None:
        """Write the book's page table to the memory, and what follows from it."""
        if self.pages is not None and self.book.pages is not None:
            self.pages[...] = self.sent(np.maximum(self.book.pages.table, 0))
        self.set_limits()

    def enter(self, entries: Entries | None) -> None:
        """Write new entries of the page table to the memory, and what follows from them."""
        if self.pages is None or entries is None or not entries.page.size:
            return
        sequence, place, page = self.sent(np.stack(entries))
        self.pages[sequence, place] = page
        self.set_limits()

    def read(self, sequence: int, first: int, last: int) -> Any:
        """Return units of a sequence, uint8 [1, kv head, last - first, unit_bytes]."""
        if self.pages is None:
            return self.units[sequence : sequence + 1, :, first:last]
        size = self.geometry.page_units
        begin = first // size
        pages = self.units[self.pages[sequence, begin : ceil_div(last, size)]]
        count, heads, _, nbytes = pages.shape
        whole = pages.swapaxes(0, 1).reshape(1, heads, count * size, nbytes)
        return whole[:, :, first - begin * size : last - begin * size]

    def write(self, sequence: int, first: int, units: Any) -> None:
        """Replace units of a sequence, whose pages are given, from unit `first` on."""
        table = None if self.book.pages is None else self.book.pages.table[sequence]
        size = self.geometry.page_units
        at, end = first, first + units.shape[2]
        while at < end:
            page = sequence if table is None else int(table[at // size])
            slot = at % size
            count = min(size - slot, end - at)
            self.units[page, :, slot : slot + count] = units[0, :, at - first : at - first + count]
            at += count

    def tokens(self, sequence: int, length: int) -> tuple[Tokens, Tokens]:
        """Return the first tokens of a sequence: K and V, whose batch is 1."""
        units = self.read(sequence, 0, ceil_div(length, UNIT_TOKENS))
        k, v = unpack_units(units, self.geometry.kv_format)
        return _first(k, length), _first(v, length)


def _first(x: Tokens, length: int) -> Tokens:
    zero = None if x.zero is None else x.zero[:, :, :length]
    return Tokens(x.codes[:, :, :length], x.scale[:, :, :length], zero)
