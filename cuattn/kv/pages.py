"""Which pages of a KV cache belong to which sequence, as the host knows it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..reference.arrays import whole_numbers
from .geometry import KVGeometry

__all__ = ["NO_PAGE", "Entries", "Pages"]

# An entry of the table without a page.
NO_PAGE = -1


class Entries(NamedTuple):
    """New entries of a page table: sequences, places in their rows, and pages; int32 all."""

    sequence: NDArray[np.int32]
    place: NDArray[np.int32]
    page: NDArray[np.int32]


class Pages:
    """The page table of a paged cache, and the pages that are free.

    Parameters
    ----------
    geometry : KVGeometry
        With pages.

    Attributes
    ----------
    table : ndarray of int32 [batch, pages_per_sequence]
        Pages of each sequence in their order, then `NO_PAGE`.
    """

    def __init__(self, geometry: KVGeometry) -> None:
        self._geometry = geometry
        self._is_own = True
        self.clear()

    def clear(self) -> None:
        """Take all pages back, unless they are the caller's."""
        geometry = self._geometry
        if not self._is_own:
            return
        shape = (geometry.batch, geometry.pages_per_sequence)
        self.table: NDArray[np.int32] = np.full(shape, NO_PAGE, np.int32)
        self._counts: NDArray[np.int64] = np.zeros(geometry.batch, np.int64)
        self._free = list(range(geometry.num_pages))[::-1]

    @property
    def limits(self) -> NDArray[np.int64]:
        """Tokens that the pages of each sequence have room for, at most the capacity."""
        return np.minimum(self._counts * self._geometry.page_size, self._geometry.capacity)

    def check(self, tokens: NDArray[np.int64], name: str, value: Any) -> None:
        """Check that sequences can be given the pages for numbers of tokens within the capacity.

        Raises
        ------
        ArgumentError
            Naming the argument that wants more pages than are free.
        """
        lacking = self._lacking(tokens)
        b = int(np.argmax(lacking))
        if not lacking[b]:
            return
        if not self._is_own:
            room = int(self.limits[b])
            expected = f"such that sequence {b} has at most the {room} tokens of its pages"
            raise ArgumentError(name, value, f"{expected}, not {tokens[b]}")
        if lacking.sum() > len(self._free):
            expected = f"such that the {len(self._free)} free pages suffice, not {lacking.sum()}"
            raise ArgumentError(name, value, expected)

    def give(self, tokens: NDArray[np.int64]) -> Entries:
        """Give free pages to sequences that lack them for numbers of tokens that passed `check`."""
        lacking = self._lacking(tokens)
        sequence = np.repeat(np.arange(len(lacking)), lacking).astype(np.int32)
        first = np.repeat(self._counts - np.cumsum(lacking) + lacking, lacking)
        place = (first + np.arange(len(sequence))).astype(np.int32)
        page = np.array([self._free.pop() for _ in sequence], np.int32)
        self.table[sequence, place] = page
        self._counts += lacking
        return Entries(sequence, place, page)

    def take_back(self, tokens: NDArray[np.int64]) -> None:
        """Take the pages back that sequences of these lengths have no tokens in."""
        if not self._is_own:
            return
        kept = np.minimum(-(-tokens // self._geometry.page_size), self._counts)
        for b in np.flatnonzero(kept < self._counts):
            row = self.table[b, kept[b] : self._counts[b]]
            self._free.extend(row[::-1].tolist())
            row[:] = NO_PAGE
        self._counts = kept

    def replace(self, table: ArrayLike, lengths: NDArray[np.int64]) -> None:
        """Take the caller's pages instead.

        Parameters
        ----------
        table : array_like of int [batch, pages_per_sequence]
            Entries after the pages of a sequence are -1.
        lengths : ndarray of int [batch]
            Tokens that there are.

        Raises
        ------
        ArgumentError
            If a page is not in the cache or there twice, a sequence has one after none, or too few
            of them for its tokens.
        """
        geometry = self._geometry
        given = whole_numbers("table", table, (geometry.batch, geometry.pages_per_sequence))
        used = given != NO_PAGE
        pages = given[used].astype(np.int64)
        if pages.size and not 0 <= pages.min() <= pages.max() < geometry.num_pages:
            raise ArgumentError("table", table, f"of pages 0 to {geometry.num_pages - 1}, or -1")
        if np.unique(pages).size < pages.size:
            raise ArgumentError("table", table, "without a page that is there twice")
        if (used[:, 1:] & ~used[:, :-1]).any():
            raise ArgumentError("table", table, "rows of pages followed by -1 only")
        counts = used.sum(axis=1)
        short = counts * geometry.page_size < lengths
        if short.any():
            b = int(np.argmax(short))
            expected = f"with pages for the {lengths[b]} tokens of sequence {b}"
            raise ArgumentError("table", table, expected)
        self._is_own, self._counts, self.table = False, counts, given.astype(np.int32)

    def _lacking(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        wanted = -(-tokens // self._geometry.page_size)
        lacking: NDArray[np.int64] = np.maximum(wanted - self._counts, 0)
        return lacking
