"""What the host knows of the sequences of a KV cache: how long they are, and their room."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, UnsupportedError
from ..reference.kv_offsets import FIRST_TOKENS
from .evicted import Evicted
from .geometry import KVGeometry
from .pages import Pages

__all__ = ["HostState"]


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
    is_cut : bool
        Whether a graph may shorten sequences at any time.
    evicted : Evicted or None
        None if no sequence with tokens has lost some that others followed.
    """

    geometry: KVGeometry
    lengths: NDArray[np.int64]
    limits: NDArray[np.int64]
    pages: Pages | None
    reserved: int = 0
    is_known: bool = True
    is_replayed: bool = False
    is_cut: bool = False
    evicted: Evicted | None = None

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

    def check_own(self, what: str) -> None:
        """Check that the cache gives its pages itself.

        Raises
        ------
        UnsupportedError
            If there are none, or they are the caller's.
        """
        if self.pages is None:
            raise UnsupportedError(f"{what}: it needs a cache with a page_size, which here is 0")
        if not self.pages.is_own:
            raise UnsupportedError(f"{what}, and set_page_table has made them the caller's")

    def emptied(self) -> HostState:
        """Empty all sequences, and forget what was reserved."""
        after = self.learned(np.zeros_like(self.lengths))._replace(reserved=0, evicted=None)
        return after if self.pages is None else after.with_pages(self.pages.cleared())

    def replaced_pages(self, table: Any) -> HostState:
        """Take the caller's page table; see `Pages.replaced`.

        Raises
        ------
        ArgumentError
            If it is wrong, or the cache has no pages, or a window.
        """
        if self.pages is None:
            raise ArgumentError("table", table, "given to a cache with a page_size only")
        if self.geometry.window:
            raise ArgumentError("table", table, "given to a cache without a window only")
        return self.with_pages(self.pages.replaced(table, self.lengths))

    def learned(self, lengths: NDArray[np.int64]) -> HostState:
        """Note what the lengths are."""
        # Every append comes here: _replace takes longer.
        same = self.limits, self.pages, self.reserved
        graphs = self.is_replayed, self.is_cut
        return HostState(self.geometry, lengths, *same, True, *graphs, self.evicted)

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
        return self._replace(
            lengths=lengths,
            is_known=False,
            is_replayed=self.is_replayed or replayed,
            is_cut=self.is_cut or (replayed and may_begin),
        )

    def check_cut(self, lengths: Any) -> None:
        """Check that sequences can be shortened to lengths that the host does not know.

        Raises
        ------
        ArgumentError
            If tokens appended later might lie in shared pages, or it would not be known which
            position they have.
        """
        shares = self.pages is not None and self.pages.extra is not None
        for wrong, why in (
            (shares, "while sequences share pages"),
            (self.evicted is not None or self.geometry.window > 0, "where pages are evicted"),
        ):
            if wrong:
                raise ArgumentError("lengths", lengths, f"in host memory {why}")

    def check_distances(self, name: str) -> None:
        """Check that distances between tokens can be counted in those that are there.

        Raises
        ------
        UnsupportedError
            If a sequence has tokens on both sides of some that are gone.
        """
        if self.evicted is not None and self.evicted.before.any():
            b = int(np.argmax(self.evicted.before > 0))
            text = f"{name} counts tokens, of which sequence {b} has lost some in its middle"
            raise UnsupportedError(f"{text}: tokens that are left have no such distances")

    def copied(self) -> HostState:
        """Return the same for another cache, to which no graph appends."""
        pages = None if self.pages is None else self.pages.copied()
        return self._replace(pages=pages, is_replayed=False, is_cut=False)

    def with_pages(self, pages: Pages) -> HostState:
        """Return the same with other pages, and the room that these have."""
        return self._replace(pages=pages, limits=pages.limits)
