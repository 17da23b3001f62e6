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


class Pages(NamedTuple):
    """The page table of a paged cache, and the pages that are free.

    It does not change: whoever gives pages or takes them back makes another one. All that follow
    from each other share `entries`, where pages are given by writing beyond `counts`, which alone
    decides what an entry means: nothing has happened until the new counts are in use.

    Attributes
    ----------
    geometry : KVGeometry
        With pages.
    entries : ndarray of int32 [batch, pages_per_sequence]
        Pages of each sequence in their order; what is behind the first `counts` means nothing.
    counts : ndarray of int64 [batch]
        Pages of each sequence.
    returned : ndarray of int32
        Free pages that sequences have had before; the first one is given next.
    unused : int
        The first of the pages that no sequence has had, which are free too.
    is_own : bool
        Whether the cache gives pages itself: they are not the caller's.
    extra : ndarray of int32 [num_pages], or None
        How many sequences have each page besides a first one; None if no two share one.
    """

    geometry: KVGeometry
    entries: NDArray[np.int32]
    counts: NDArray[np.int64]
    returned: NDArray[np.int32]
    unused: int = 0
    is_own: bool = True
    extra: NDArray[np.int32] | None = None

    @classmethod
    def all_free(cls, geometry: KVGeometry) -> Pages:
        """Return the pages of a cache without tokens."""
        entries = np.zeros((geometry.batch, geometry.pages_per_sequence), np.int32)
        return cls(geometry, entries, np.zeros(geometry.batch, np.int64), np.zeros(0, np.int32))

    @property
    def table(self) -> NDArray[np.int32]:
        """Pages of each sequence in their order, then `NO_PAGE`; a new array."""
        places = np.arange(self.geometry.pages_per_sequence)
        return np.where(places < self.counts[:, None], self.entries, np.int32(NO_PAGE))

    @property
    def limits(self) -> NDArray[np.int64]:
        """Tokens that the pages of each sequence have room for, at most the capacity."""
        return np.minimum(self.counts * self.geometry.page_size, self.geometry.capacity)

    def given(
        self, tokens: NDArray[np.int64], name: str, value: Any
    ) -> tuple[Pages, Entries | None]:
        """Give free pages to sequences that lack them for numbers of tokens within the capacity.

        Returns
        -------
        pages : Pages
        entries : Entries or None
            What is new in the table; None if nothing is.

        Raises
        ------
        ArgumentError
            Naming the argument that wants more pages than are free.
        """
        lacking = np.maximum(-(-tokens // self.geometry.page_size) - self.counts, 0)
        b, count = int(np.argmax(lacking)), int(lacking.sum())
        if not count:
            return self, None
        if not self.is_own:
            room = int(self.limits[b])
            expected = f"such that sequence {b} has at most the {room} tokens of its pages"
            raise ArgumentError(name, value, f"{expected}, not {tokens[b]}")
        page, after = self.taken(count, name, value)
        sequence = np.repeat(np.arange(len(lacking)), lacking).astype(np.int32)
        first = np.repeat(self.counts - np.cumsum(lacking) + lacking, lacking)
        place = (first + np.arange(count)).astype(np.int32)
        self.entries[sequence, place] = page
        pages = after._replace(counts=self.counts + lacking)
        return pages, Entries(sequence, place, page)

    def taken(self, count: int, name: str, value: Any) -> tuple[NDArray[np.int32], Pages]:
        """Take some of the free pages, which no sequence has yet.

        Raises
        ------
        ArgumentError
            Naming the argument that wants more pages than are free.
        """
        free = len(self.returned) + self.geometry.num_pages - self.unused
        if count > free:
            expected = f"such that the {free} free pages suffice, not {count}"
            raise ArgumentError(name, value, expected)
        again = self.returned[:count]
        unused = self.unused + count - len(again)
        page = np.concatenate([again, np.arange(self.unused, unused, dtype=np.int32)])
        return page, self._replace(returned=self.returned[count:], unused=unused)

    def left(self, dropped: NDArray[np.int32]) -> Pages:
        """Let go of pages that sequences had; those that no other has are free, the first first.

        Parameters
        ----------
        dropped : ndarray of int32
            A page is there once for each sequence that had it.
        """
        if self.extra is None:
            return self._replace(returned=np.concatenate([dropped, self.returned]))
        page, times = np.unique(dropped, return_counts=True)
        others = self.extra[page] - times
        extra = self.extra.copy()
        extra[page] = np.maximum(others, 0)
        returned = np.concatenate([page[others < 0], self.returned])
        return self._replace(returned=returned, extra=extra if extra.any() else None)

    def taken_back(self, tokens: NDArray[np.int64]) -> Pages:
        """Take the pages back, unless they are the caller's, that have no tokens any more."""
        kept = np.minimum(-(-tokens // self.geometry.page_size), self.counts)
        shorter = np.flatnonzero(kept < self.counts)
        if not self.is_own or not shorter.size:
            return self
        rows = [self.entries[b, kept[b] : self.counts[b]] for b in shorter[::-1]]
        return self.left(np.concatenate(rows))._replace(counts=kept)

    def cleared(self) -> Pages:
        """Take all pages back, unless they are the caller's."""
        if not self.is_own:
            return self
        nothing = np.zeros(0, np.int32)
        counts = np.zeros_like(self.counts)
        return self._replace(counts=counts, returned=nothing, unused=0, extra=None)

    def replaced(self, table: ArrayLike, lengths: NDArray[np.int64]) -> Pages:
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
        geometry = self.geometry
        given = whole_numbers("table", table, self.entries.shape)
        used = given != NO_PAGE
        pages = given[used].astype(np.int64)
        if pages.size and not 0 <= pages.min() <= pages.max() < geometry.num_pages:
            raise ArgumentError("table", table, f"of pages 0 to {geometry.num_pages - 1}, or -1")
        if np.unique(pages).size < pages.size:
            raise ArgumentError("table", table, "without a page that is there twice")
        if (used[:, 1:] & ~used[:, :-1]).any():
            raise ArgumentError("table", table, "rows of pages followed by -1 only")
        counts = used.sum(axis=1, dtype=np.int64)
        short = counts * geometry.page_size < lengths
        if short.any():
            b = int(np.argmax(short))
            expected = f"with pages for the {lengths[b]} tokens of sequence {b}"
            raise ArgumentError("table", table, expected)
        entries = np.where(used, given, 0).astype(np.int32)
        return self._replace(entries=entries, counts=counts, is_own=False, extra=None)

    def copied(self) -> Pages:
        """Return the same for a cache of its own, whose pages are given apart from this one's."""
        return self._replace(entries=self.entries.copy())
