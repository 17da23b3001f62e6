"""What the host knows of the sequences of a KV cache: how long they are, and their room."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..reference.arrays import whole_numbers
from ..reference.kv_offsets import FIRST_TOKENS
from .geometry import KVGeometry
from .pages import Entries, Pages

__all__ = ["HostState", "Plan"]


class Plan(NamedTuple):
    """A change of a cache that has passed every check.

    Attributes
    ----------
    after : HostState
        What the host knows when it is done.
    entries : Entries or None
        What is new in the page table.
    begins : bool
        Whether sequences get tokens that have, or have had, only first ones: `FIRST_TOKENS`.
    """

    after: HostState
    entries: Entries | None = None
    begins: bool = False


class HostState(NamedTuple):
    """Lengths and limits of sequences; nothing here waits for a GPU.

    It does not change: a call makes the next one, does everything else, and then turns to it
    (`Memory.transaction`).

    Attributes
    ----------
    geometry : KVGeometry
    lengths : ndarray of int64 [batch]
        Tokens of each sequence; if not `is_known`, what they were when that was known last, or 0.
    limits : ndarray of int64 [batch]
        Tokens that each sequence has room for without more pages.
    pages : Pages or None
        None if every sequence lies in one piece.
    reserved : int
        Tokens that every sequence keeps pages for, until all are emptied.
    is_known : bool
        Whether the lengths are those of the device, once it has done what is enqueued.
    is_replayed : bool
        Whether a graph may change the lengths at any time.
    """

    geometry: KVGeometry
    lengths: NDArray[np.int64]
    limits: NDArray[np.int64]
    pages: Pages | None
    reserved: int = 0
    is_known: bool = True
    is_replayed: bool = False

    @classmethod
    def empty(cls, geometry: KVGeometry) -> HostState:
        """Return the host state of a cache without tokens."""
        lengths = np.zeros(geometry.batch, np.int64)
        if not geometry.page_size:
            return cls(geometry, lengths, np.full_like(lengths, geometry.capacity), None)
        pages = Pages.all_free(geometry)
        return cls(geometry, lengths, pages.limits, pages)

    @property
    def may_begin(self) -> bool:
        """Whether there may be sequences whose offsets are not fixed: with first tokens only."""
        return bool(self.lengths.min() <= FIRST_TOKENS)

    def appended(self, counts: NDArray[np.int64] | int, shape: tuple[int, ...]) -> Plan:
        """Plan an append to lengths that are known.

        Parameters
        ----------
        counts : ndarray of int64 [batch], or int for all sequences
        shape : tuple of int
            Of the caller's `k`, for the error.

        Raises
        ------
        ArgumentError
            If a sequence has no room for its tokens.
        """
        lengths = self.lengths + counts
        begins = bool((lengths > self.lengths)[self.lengths <= FIRST_TOKENS].any())
        if (lengths <= self.limits).all():
            return Plan(self.learned(lengths), None, begins)
        capacity = self.geometry.capacity
        b = int(np.argmax(lengths))
        if lengths[b] > capacity:
            before = self.lengths[b]
            expected = (
                f"of at most {capacity - before} tokens for sequence {b}, which has {before} of "
                f"{capacity} and was to get {lengths[b] - before}"
            )
            raise ArgumentError("k", shape, expected)
        after, entries, _ = self._with_room(lengths, "k", shape)
        return Plan(after.learned(lengths), entries, begins)

    def reserving(self, tokens: int) -> Plan:
        """Plan to give every sequence the pages for a number of tokens, until all are emptied.

        Raises
        ------
        ArgumentError
            If it is more than the capacity, or than the free pages have room for.
        """
        capacity = self.geometry.capacity
        if not is_whole_number(tokens) or not 0 <= tokens <= capacity:
            raise ArgumentError("tokens", tokens, f"a whole number from 0 to {capacity}")
        after, entries, _ = self._with_room(np.full_like(self.lengths, tokens), "tokens", tokens)
        return Plan(after._replace(reserved=max(self.reserved, tokens)), entries)

    def truncated(self, lengths: ArrayLike) -> HostState:
        """Shorten sequences; pages that no token is in, and none was reserved in, are free.

        Raises
        ------
        ArgumentError
            If a length is not a whole number from 0 to what it is.
        """
        given = whole_numbers("lengths", lengths, self.lengths.shape)
        wrong = (given < 0) | (given > self.lengths)
        if wrong.any():
            b = int(np.argmax(wrong))
            expected = f"from 0 to {self.lengths[b]} for sequence {b}, not {given[b]}"
            raise ArgumentError("lengths", lengths, expected)
        after = self.learned(given.astype(np.int64))
        if self.pages is None:
            return after
        return after._with_pages(self.pages.taken_back(np.maximum(after.lengths, self.reserved)))

    def emptied(self) -> HostState:
        """Empty all sequences, and forget what was reserved."""
        after = self.learned(np.zeros_like(self.lengths))._replace(reserved=0)
        return after if self.pages is None else after._with_pages(self.pages.cleared())

    def replaced_pages(self, table: Any) -> HostState:
        """Take the caller's page table; see `Pages.replaced`.

        Raises
        ------
        ArgumentError
            If it is wrong, or the cache has no pages.
        """
        if self.pages is None:
            raise ArgumentError("table", table, "given to a cache with a page_size only")
        return self._with_pages(self.pages.replaced(table, self.lengths))

    def learned(self, lengths: NDArray[np.int64]) -> HostState:
        """Note what the lengths are."""
        # Every append comes here: _replace takes longer.
        same = self.limits, self.pages, self.reserved
        return HostState(self.geometry, lengths, *same, True, self.is_replayed)

    def forgotten(self, *, replayed: bool, may_begin: bool = False) -> HostState:
        """Note that the lengths are changed by what only the device knows.

        Parameters
        ----------
        replayed : bool
            Whether a graph does so, whenever it is launched.
        may_begin : bool
            Whether sequences may have no or few tokens after it.
        """
        lengths = np.zeros_like(self.lengths) if may_begin else self.lengths
        is_replayed = self.is_replayed or replayed
        return self._replace(lengths=lengths, is_known=False, is_replayed=is_replayed)

    def copied(self) -> HostState:
        """Return the same for another cache, to which no graph appends."""
        pages = None if self.pages is None else self.pages.copied()
        return self._replace(pages=pages, is_replayed=False)

    def _with_room(self, tokens: NDArray[np.int64], name: str, value: Any) -> Plan:
        if self.pages is None:
            return Plan(self)
        pages, entries = self.pages.given(tokens, name, value)
        return Plan(self if entries is None else self._with_pages(pages), entries)

    def _with_pages(self, pages: Pages) -> HostState:
        return self._replace(pages=pages, limits=pages.limits)
