"""What of a rank's queries sees what of a piece of keys, as calls of `cuattn.attention`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from ..reference.layout import TOKEN_PAD
from .placement import Run

__all__ = ["Part", "Piece", "part_of", "parts_of", "pieces_of", "tokens_in"]

_UNLIMITED = -1

# Keys of a rank that are quantized together, in its order.
Piece: TypeAlias = tuple[Run, ...]


class Part(NamedTuple):
    """A call on some rows and the first keys of a piece.

    Attributes
    ----------
    start, stop : int
        Rows that see any of the keys, and perhaps some between them that see none.
    keys : int
        How many of the piece the call is given, from the first one on.
    pad : int
        Rows to be added behind them, and to be dropped from the result: rows of a call are aligned
        with its keys at the last ones, and a window reaches no less far than to a row's own key.
    window_size : tuple of int
        Of the call, for these alignments.
    """

    start: int
    stop: int
    keys: int
    pad: int
    window_size: tuple[int, int]

    @property
    def is_full(self) -> bool:
        """Whether the rows see all keys."""
        return self.window_size == (_UNLIMITED, _UNLIMITED)


def tokens_in(piece: Piece) -> int:
    """Return how many keys there are."""
    return sum(run.tokens for run in piece)


def pieces_of(keys: Sequence[Run], left: int, right: int) -> list[Piece]:
    """Return what of a rank's keys is quantized together.

    Without a mask no row asks where keys are, and without a bound on the left what a row sees are
    the first ones, of runs in the order of their positions: all of them are one piece. So that some
    of its runs are whole blocks of codes, they have to end with these, or are pieces of their own.

    Parameters
    ----------
    keys : sequence of Run
    left, right : int
        As for `parts_of`.
    """
    if left == right == _UNLIMITED:
        return [(Run(0, 1, tokens_in(tuple(keys))),)]
    whole = all(run.step == 1 and run.tokens % TOKEN_PAD == 0 for run in keys[:-1])
    if left == _UNLIMITED and whole:
        return [tuple(keys)]
    return [(run,) for run in keys]


@lru_cache(1024)
def parts_of(queries: tuple[Run, ...], piece: Piece, left: int, right: int) -> tuple[Part, ...]:
    """Return the calls that attend from a rank's rows to a piece of keys.

    Parameters
    ----------
    queries : tuple of Run
        The rank's rows in its order, at their positions among the keys.
    piece : tuple of Run
        Of the same step; more than one only without a bound on the left.
    left, right : int
        A row sees the keys at so many positions before and behind its own; -1 for all.

    Returns
    -------
    tuple of Part
        In the order of the rows: one for each run of rows that sees any of a run of keys, but none
        of the next one. It joins the one before it, where both are one call: if that reaches to its
        beginning, has no bound on the left, and either it sees all keys that the other one has, or
        rows of both see the keys up to those at one distance from their own.
    """
    if len(piece) > 1:
        return tuple(_of_prefixes(queries, piece, right))
    (keys,) = piece
    found: list[Part] = []
    first = 0
    for run in queries:
        part = part_of(run.tokens, keys.tokens, *_bounds(run, keys, left, right))
        if part is not None:
            part = part._replace(start=part.start + first, stop=part.stop + first)
            last = found[-1] if found else None
            if last is not None and _joins(last, part, first, run):
                found[-1] = _join(last, part)
            else:
                found.append(part)
        first += run.tokens
    return tuple(found)


def _of_prefixes(queries: tuple[Run, ...], piece: Piece, right: int) -> list[Part]:
    """Return the calls of rows that see all keys up to a position."""
    found: list[tuple[int, int, int, int]] = []  # rows from and to, keys, and how far row 0 sees
    first = 0
    for run in queries:
        before = 0
        for keys, following in zip(piece, (*piece[1:], None), strict=True):
            start = _within(keys.start - right - run.start, run.tokens)
            stop = run.tokens
            if following is not None:
                stop = _within(following.start - right - run.start, run.tokens)
            count = before + keys.tokens
            if start < stop:
                reach = run.start + right - keys.start + before - first
                found.append((first + start, first + stop, count, reach))
            before = count
        first += run.tokens
    calls: list[tuple[int, int, int, int]] = []
    for start, stop, count, reach in found:
        if calls and calls[-1][1] == start:
            begin, _, seen, far = calls[-1]
            all_of_it = seen == count and start + min(reach, far) >= count - 1
            if all_of_it or (far == reach and start - 1 + far < seen):
                calls[-1] = begin, stop, count, far
                continue
        calls.append((start, stop, count, reach))
    parts = (
        (start, part_of(stop - start, count, None, start + reach))
        for start, stop, count, reach in calls
    )
    return [
        part._replace(start=part.start + start, stop=part.stop + start)
        for start, part in parts
        if part is not None
    ]


def _within(x: int, most: int) -> int:
    return min(max(x, 0), most)


def part_of(rows: int, keys: int, low: int | None, high: int | None) -> Part | None:
    """Return the call in which row i sees key j if ``low <= j - i <= high``; None if none sees any.

    Parameters
    ----------
    rows, keys : int
    low, high : int or None
        None for no bound.
    """
    if low is not None and high is not None and low > high:
        return None
    start = 0 if high is None else max(0, -high)
    stop = rows if low is None else min(rows, keys - low)
    if start >= stop or not keys:
        return None
    count = stop - start
    low = None if low is None else low + start
    high = None if high is None else high + start
    if high is not None and high >= keys - 1:
        high = None
    if low is not None and low + count - 1 <= 0:
        low = None
    offset, pad = keys - count, 0
    if high is not None and high < offset:
        offset, pad = high, offset - high
    return Part(
        start,
        stop,
        keys,
        pad,
        (
            _UNLIMITED if low is None else offset - low,
            _UNLIMITED if high is None else high - offset,
        ),
    )


def _bounds(queries: Run, keys: Run, left: int, right: int) -> tuple[int | None, int | None]:
    """Return bounds of ``j - i`` from those of positions."""
    ahead, step = queries.start - keys.start, keys.step
    low = None if left == _UNLIMITED else -((left - ahead) // step)
    high = None if right == _UNLIMITED else (right + ahead) // step
    return low, high


def _joins(last: Part, part: Part, first: int, run: Run) -> bool:
    whole = part.is_full and part.stop - part.start == run.tokens
    return whole and last.stop == first and not last.pad and last.window_size[0] == _UNLIMITED


def _join(last: Part, part: Part) -> Part:
    right = last.window_size[1]
    if right != _UNLIMITED:
        right += part.stop - part.start  # which the last rows are now behind
    return Part(last.start, part.stop, last.keys, 0, (_UNLIMITED, right))
