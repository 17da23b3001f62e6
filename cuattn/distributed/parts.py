"""What of a run of queries sees what of a run of keys, as calls of `cuattn.attention`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .placement import Run

__all__ = ["Part", "part_of", "parts_of"]

_UNLIMITED = -1


class Part(NamedTuple):
    """A call on some rows and all keys of a piece.

    Attributes
    ----------
    start, stop : int
        Rows that see any of the keys, and perhaps some between them that see none.
    pad : int
        Rows to be added behind them, and to be dropped from the result: rows of a call are aligned
        with its keys at the last ones, and a window reaches no less far than to a row's own key.
    window_size : tuple of int
        Of the call, for these alignments.
    """

    start: int
    stop: int
    pad: int
    window_size: tuple[int, int]

    @property
    def is_full(self) -> bool:
        """Whether the rows see all keys."""
        return self.window_size == (_UNLIMITED, _UNLIMITED)


@lru_cache(1024)
def parts_of(queries: tuple[Run, ...], keys: Run, left: int, right: int) -> tuple[Part, ...]:
    """Return the calls that attend from a rank's rows to a piece of keys.

    Parameters
    ----------
    queries : tuple of Run
        The rank's rows in its order, at their positions among the keys.
    keys : Run
        Of the same step.
    left, right : int
        A row sees the keys at so many positions before and behind its own; -1 for all.

    Returns
    -------
    tuple of Part
        One for each run that sees any, in their order; but a run that sees all keys joins the one
        before it, if that reaches to its end and has no bound on the left.
    """
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
    return Part(last.start, part.stop, 0, (_UNLIMITED, right))
