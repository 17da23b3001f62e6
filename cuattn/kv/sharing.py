"""Pages that several sequences share, and copies of them for those that write."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .pages import Pages

__all__ = ["Copies", "own_pages", "rearranged", "shares"]


class Copies(NamedTuple):
    """Pages whose contents others get; int32 both, one of `to` for each of `of`."""

    of: NDArray[np.int32]
    to: NDArray[np.int32]


def rearranged(pages: Pages, sources: NDArray[np.int64], kept: NDArray[np.int64]) -> Pages:
    """Give sequence b the first ``kept[b]`` pages of sequence ``sources[b]``; others are free.

    Nothing is copied: a page that is in several rows then is shared.
    """
    places = np.arange(pages.geometry.pages_per_sequence)
    entries = pages.entries[sources]
    had = np.unique(pages.entries[places < pages.counts[:, None]])
    page, times = np.unique(entries[places < kept[:, None]], return_counts=True)
    freed = np.setdiff1d(had, page)
    extra = np.zeros(pages.geometry.num_pages, np.int32)
    extra[page] = times - 1
    return pages._replace(
        entries=entries,
        counts=kept,
        returned=np.concatenate([freed, pages.returned]),
        extra=extra if extra.any() else None,
    )


def shares(pages: Pages, first: NDArray[np.int64], last: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Return the sequences and places, from `first` on and before `last`, whose page is shared.

    Parameters
    ----------
    pages : Pages
    first, last : ndarray of int [batch]
        Places in the rows of the page table; those behind a sequence's pages do not count.

    Returns
    -------
    list of two ndarray of int
        In the order of the places, and of the sequences where these are the same.
    """
    none = np.zeros(0, np.int64)
    found: list[list[NDArray[Any]]] = [[none, none]]
    if pages.extra is not None:
        last = np.minimum(last, pages.counts)
        # Nearly always one place, or none, of each sequence.
        for ahead in range(int((last - first).max())):
            b = np.flatnonzero(first + ahead < last)
            place = first[b] + ahead
            shared = pages.extra[pages.entries[b, place]] > 0
            found.append([b[shared], place[shared]])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def own_pages(
    pages: Pages,
    lengths: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    name: str,
    value: Any,
) -> tuple[Pages, Copies | None]:
    """Give sequences pages of their own in place of shared ones that they are to write to.

    Of sequences that share a page, and are all to write to it, the last one keeps it.

    Parameters
    ----------
    pages : Pages
    lengths : ndarray of int [batch]
        Tokens that there are: a page with some of them is copied.
    first, last : ndarray of int [batch]
        Places that are written to, as those of `shares`.
    name, value
        The argument that is wrong if there are not enough free pages.

    Returns
    -------
    pages : Pages
    copies : Copies or None
        None if nothing was shared; then `pages` are the same.

    Raises
    ------
    ArgumentError
        Naming the argument that wants more pages than are free.
    """
    sequence, place = shares(pages, first, last)
    if pages.extra is None or not sequence.size:
        return pages, None
    extra, entries = pages.extra.copy(), pages.entries.copy()
    moved = []
    for b, at in zip(sequence.tolist(), place.tolist(), strict=True):
        if extra[entries[b, at]] > 0:
            extra[entries[b, at]] -= 1
            moved.append((b, at))
    sequence, place = np.array(moved).T
    page, after = pages.taken(len(moved), name, value)
    old = entries[sequence, place]
    entries[sequence, place] = page
    holds = place * pages.geometry.page_size < lengths[sequence]
    after = after._replace(entries=entries, extra=extra if extra.any() else None)
    return after, Copies(old[holds], page[holds])
