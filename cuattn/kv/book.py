"""What the host knows of the sequences of a KV cache: how long they are, and their room."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..reference.arrays import whole_numbers
from .geometry import KVGeometry
from .pages import Entries, Pages

__all__ = ["Book", "Plan"]


class Plan(NamedTuple):
    """An append that has passed every check: the lengths after it, and if it lacks pages."""

    after: NDArray[np.int64]
    lacks_pages: bool
    begins: bool


class Book:
    """Lengths and limits of sequences; nothing here waits for a GPU.

    Parameters
    ----------
    geometry : KVGeometry

    Attributes
    ----------
    lengths : ndarray of int64 [batch]
        Tokens of each sequence; if not `is_known`, what they were when that was known last, or 0.
    limits : ndarray of int64 [batch]
        Tokens that each sequence has room for without more pages.
    pages : Pages or None
        None if every sequence lies in one piece.
    is_known : bool
        Whether the lengths are those of the device, once it has done what is enqueued.
    is_replayed : bool
        Whether a graph may change the lengths at any time.
    """

    def __init__(self, geometry: KVGeometry) -> None:
        self._geometry = geometry
        self._reserved = 0
        self.pages = Pages(geometry) if geometry.page_size else None
        self.is_known = True
        self.is_replayed = False
        self.lengths: NDArray[np.int64] = np.zeros(geometry.batch, np.int64)
        self.update_limits()

    @property
    def may_begin(self) -> bool:
        """Whether there may be sequences without a token."""
        return not self.lengths.all()

    def plan(self, counts: NDArray[np.int64] | int, shape: tuple[int, ...]) -> Plan:
        """Check an append to lengths that are known.

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
        after = self.lengths + counts
        begins = bool((after[self.lengths == 0] > 0).any()) if self.may_begin else False
        if (after <= self.limits).all():
            return Plan(after, False, begins)
        capacity = self._geometry.capacity
        b = int(np.argmax(after))
        if after[b] > capacity:
            before = self.lengths[b]
            expected = (
                f"of at most {capacity - before} tokens for sequence {b}, which has {before} of "
                f"{capacity} and was to get {after[b] - before}"
            )
            raise ArgumentError("k", shape, expected)
        if self.pages is not None:
            self.pages.check(after, "k", shape)
        return Plan(after, True, begins)

    def give_pages(self, tokens: NDArray[np.int64]) -> Entries | None:
        """Give sequences the pages for numbers of tokens that have been checked."""
        if self.pages is None:
            return None
        given = self.pages.give(tokens)
        self.update_limits()
        return given

    def forget(self, *, replayed: bool) -> None:
        """Note that the lengths are changed by what only the device knows."""
        self.is_known = False
        self.is_replayed |= replayed

    def learn(self, lengths: NDArray[np.int64]) -> None:
        """Note what the lengths are."""
        self.lengths, self.is_known = lengths, True

    def truncated(self, lengths: ArrayLike) -> NDArray[np.int64]:
        """Check new lengths of sequences, none longer than it is.

        Raises
        ------
        ArgumentError
            If they are anything else.
        """
        given = whole_numbers("lengths", lengths, self.lengths.shape)
        wrong = (given < 0) | (given > self.lengths)
        if wrong.any():
            b = int(np.argmax(wrong))
            expected = f"from 0 to {self.lengths[b]} for sequence {b}, not {given[b]}"
            raise ArgumentError("lengths", lengths, expected)
        return given.astype(np.int64)

    def truncate(self, lengths: NDArray[np.int64]) -> None:
        """Shorten sequences; pages that no token is in, and none was reserved in, are free."""
        self.lengths = lengths
        if self.pages is not None:
            self.pages.take_back(np.maximum(lengths, self._reserved))
            self.update_limits()

    def reset(self) -> None:
        """Empty all sequences, and forget what was reserved."""
        self._reserved = 0
        self.learn(np.zeros_like(self.lengths))
        if self.pages is not None:
            self.pages.clear()
            self.update_limits()

    def reserve(self, tokens: int) -> Entries | None:
        """Give every sequence the pages for a number of tokens, until `reset`.

        Raises
        ------
        ArgumentError
            If it is more than the capacity, or than the free pages have room for.
        """
        capacity = self._geometry.capacity
        if not is_whole_number(tokens) or not 0 <= tokens <= capacity:
            raise ArgumentError("tokens", tokens, f"a whole number from 0 to {capacity}")
        if self.pages is None:
            return None
        wanted = np.full(len(self.lengths), tokens, np.int64)
        self.pages.check(wanted, "tokens", tokens)
        self._reserved = max(self._reserved, tokens)
        return self.give_pages(wanted)

    def replace_pages(self, table: Any) -> None:
        """Take the caller's page table; see `Pages.replace`.

        Raises
        ------
        ArgumentError
            If it is wrong, or the cache has no pages.
        """
        if self.pages is None:
            raise ArgumentError("table", table, "given to a cache with a page_size only")
        self.pages.replace(table, self.lengths)
        self.update_limits()

    def update_limits(self) -> None:
        """Work the limits out again."""
        if self.pages is not None:
            self.limits = self.pages.limits
        else:
            self.limits = np.full(len(self.lengths), self._geometry.capacity, np.int64)
