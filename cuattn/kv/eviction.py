"""Which pages of sequences go, though tokens come after them, and what the host knows then."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.sizes import is_whole_number
from ..errors import ArgumentError, UnsupportedError
from ..reference.arrays import whole_numbers
from .evicted import Evicted
from .host_state import HostState

__all__ = ["Eviction", "chosen", "rolled"]


class Eviction(NamedTuple):
    """Pages that sequences lose, when that has passed every check.

    Attributes
    ----------
    before, after : HostState
        What the host knows without it, and when it is done.
    sequence, place : ndarray of int64
        Of each page, in this order.
    """

    before: HostState
    after: HostState
    sequence: NDArray[np.int64]
    place: NDArray[np.int64]


def chosen(host_state: HostState, sequence: Any, pages: ArrayLike) -> Eviction:
    """Plan that a sequence loses pages which the caller has chosen.

    Raises
    ------
    ArgumentError
        If there is no such sequence, or pages are no places in its row of the page table, or are
        those of the last token or of tokens that keep all bits of nested codes.
    UnsupportedError
        If the cache has no pages, or they are the caller's, or a graph shortens sequences.
    """
    _check(host_state, "evict gives pages back")
    geometry = host_state.geometry
    if not is_whole_number(sequence) or not 0 <= sequence < geometry.batch:
        expected = f"a sequence from 0 to {geometry.batch - 1}"
        raise ArgumentError("sequence", sequence, expected)
    shape = np.shape(pages) if isinstance(pages, np.ndarray) else (_count(pages),)
    place = np.unique(whole_numbers("pages", pages, shape).astype(np.int64))
    length = int(host_state.lengths[sequence])
    low, high = geometry.first_pages, max(length - 1, 0) // geometry.page_size
    if len(shape) != 1 or len(place) < shape[0] or (place < low).any() or (place >= high).any():
        which = f"from {low} to {high - 1}" if low < high else "of which there are none"
        expected = f"different places in the page table, {which}: before that of the last token"
        if low:
            expected += f", behind the first {geometry.first} tokens, which keep 8 bits"
        raise ArgumentError("pages", pages, expected)
    return _eviction(host_state, np.full(len(place), sequence, np.int64), place)


def rolled(host_state: HostState, counts: NDArray[np.int64] | int) -> Eviction | None:
    """Plan that sequences lose what is before the window of the next token, if they get any.

    Parameters
    ----------
    host_state : HostState
        Whose lengths are known.
    counts : ndarray of int64 [batch], or int for all sequences
        Tokens that are to be appended.

    Returns
    -------
    Eviction or None
        None if there is no window, or no whole page before it.
    """
    geometry = host_state.geometry
    if not geometry.window:
        return None
    lengths = host_state.lengths
    # Of the window one token is the next one.
    old = (lengths - (geometry.window - 1)) // geometry.page_size
    last = np.minimum(old, np.maximum(lengths - 1, 0) // geometry.page_size)
    first = geometry.sink_pages
    count = np.where(np.asarray(counts) > 0, np.maximum(last - first, 0), 0)
    if not count.any():
        return None
    _check(host_state, "a window gives pages back")
    place = first + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return _eviction(host_state, np.repeat(np.arange(len(count)), count), place)


def _check(host_state: HostState, what: str) -> None:
    host_state.check_own(what)
    if host_state.is_cut:
        raise UnsupportedError(f"{what}, and a graph that shortens sequences would not know of it")


def _count(pages: Any) -> int:
    try:
        return len(pages)
    except TypeError:
        expected = "a list of places in the page table, such as [0, 1]"
        raise ArgumentError("pages", pages, expected) from None


def _eviction(
    host_state: HostState, sequence: NDArray[np.int64], place: NDArray[np.int64]
) -> Eviction:
    pages, size = host_state.pages, host_state.geometry.page_size
    assert pages is not None
    if not sequence.size:
        return Eviction(host_state, host_state, sequence, place)
    rows, row, count = np.unique(sequence, return_inverse=True, return_counts=True)
    gone = np.zeros((len(rows), pages.entries.shape[1]), np.bool_)
    gone[row, place] = True
    entries, counts = pages.entries.copy(), pages.counts.copy()
    order = np.argsort(gone, axis=1, kind="stable")
    entries[rows] = np.take_along_axis(entries[rows], order, axis=1)
    counts[rows] -= count
    old = host_state.evicted
    if old is None:
        old = Evicted(np.zeros_like(host_state.lengths), np.zeros_like(host_state.lengths))
    lengths, tokens, before = host_state.lengths.copy(), old.tokens.copy(), old.before.copy()
    lengths[rows] -= count * size
    tokens[rows] += count * size
    first_of = np.cumsum(count) - count
    earlier = np.add.reduceat(place * size < before[sequence], first_of)
    last = np.maximum.reduceat(place, first_of)
    before[rows] = np.maximum(before[rows] - earlier * size, (last + 1 - count) * size)
    left = pages.left(pages.entries[sequence, place])._replace(entries=entries, counts=counts)
    after = host_state.learned(lengths)._replace(evicted=Evicted(tokens, before))
    return Eviction(host_state, after.with_pages(left), sequence, place)
