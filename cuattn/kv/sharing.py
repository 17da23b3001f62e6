"""Pages that several sequences share, and copies of them for those that write."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .geometry import KVGeometry
from .pages import NO_PAGE, Pages

__all__ = [
    "Copies",
    "check_numbered",
    "in_rows",
    "numbered",
    "own_pages",
    "rearranged",
    "shares",
]


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


def numbered(pages: Pages, lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the page table of tokens only, with pages numbered as they are first met, from 0 on.

    Returns
    -------
    ndarray of int32 [batch, pages_per_sequence]
        -1 behind the pages of a sequence.
    """
    table = pages.table
    table[np.arange(table.shape[1]) * pages.geometry.page_size >= lengths[:, None]] = NO_PAGE
    page, first, where = np.unique(table, return_index=True, return_inverse=True)
    number = np.empty(len(page), np.int32)
    number[np.argsort(np.where(page == NO_PAGE, -1, first))] = np.arange(len(page))
    is_some_missing = bool((page == NO_PAGE).any())
    return number[where.reshape(table.shape)] - np.int32(is_some_missing)


def check_numbered(table: NDArray[np.int32], counts: list[int], num_pages: int) -> None:
    """Check a table as `numbered` returns it, of sequences with so many pages.

    Raises
    ------
    ArgumentError
        If it is another one.
    """
    inside = np.arange(table.shape[1]) < np.array(counts)[:, None]
    used = np.unique(table[inside])
    is_right = (table[~inside] == NO_PAGE).all() and (used == np.arange(len(used))).all()
    once = all(len(set(row[:n])) == n for row, n in zip(table.tolist(), counts, strict=True))
    if not is_right or not once or len(used) > num_pages:
        expected = f"rows of {counts} pages, numbered from 0 and fewer than {num_pages + 1}"
        raise ArgumentError("pages", table.tolist(), expected)


def in_rows(geometry: KVGeometry, table: NDArray[np.int32]) -> Pages:
    """Return the pages of a cache, of which the first ones are in rows as `numbered` has them."""
    counts = (table != NO_PAGE).sum(axis=1, dtype=np.int64)
    times = np.bincount(table[table != NO_PAGE], minlength=geometry.num_pages)
    extra = np.maximum(times - 1, 0).astype(np.int32)
    return Pages.all_free(geometry)._replace(
        entries=np.maximum(table, 0),
        counts=counts,
        unused=int((times > 0).sum()),
        extra=extra if extra.any() else None,
    )
