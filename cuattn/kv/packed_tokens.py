"""Tokens of several sequences that lie end to end in arrays of the caller's: which are whose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays.view import View
from ..errors import ArgumentError
from ..reference.arrays import whole_numbers

__all__ = ["GivenTokens", "PackedTokens", "checked_bounds"]


class GivenTokens(NamedTuple):
    """The arguments of an append that say which rows of its arrays are whose tokens."""

    counts: Any = None
    cu_seqlens_k: Any = None
    sequences: Any = None

    @property
    def are_packed(self) -> bool:
        """Whether arrays have the tokens of all sequences end to end."""
        return self.cu_seqlens_k is not None

    def checked_sequences(self, batch: int) -> NDArray[np.int64] | None:
        """Return which sequence of a cache each part is of; None if tokens are not packed.

        Raises
        ------
        ArgumentError
            If there is no such sequence, or one is there twice; or if arguments do not go together.
        """
        if not self.are_packed:
            if self.sequences is not None:
                raise ArgumentError("sequences", self.sequences, "None without cu_seqlens_k")
            return None
        if self.counts is not None:
            raise ArgumentError("counts", self.counts, "None, as cu_seqlens_k is given")
        if self.sequences is None:
            return np.arange(batch)
        # An array of one number, without axes, has no length but the method.
        is_list = hasattr(self.sequences, "__len__") and getattr(self.sequences, "shape", True)
        count = len(self.sequences) if is_list else -1
        given = whole_numbers("sequences", self.sequences, (count,)).astype(np.int64)
        inside = (given >= 0) & (given < batch)
        if not inside.all() or np.unique(given).size < count:
            expected = f"different sequences, from 0 to {batch - 1}"
            raise ArgumentError("sequences", self.sequences, expected)
        return given


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """Which rows of arrays are whose tokens.

    Attributes
    ----------
    batch : int
        Sequences of the cache.
    total : int
        Rows of the arrays.
    sequences : ndarray of int64 [parts]
        Whose the parts are, in their order.
    bounds : ndarray of int64 [parts + 1], or View
        Rows at which the parts begin and end; a View if only the GPU knows.
    """

    batch: int
    total: int
    sequences: NDArray[np.int64]
    bounds: NDArray[np.int64] | View

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of each sequence of the cache, [batch]; of bounds that the host knows."""
        assert not isinstance(self.bounds, View)
        counts = np.zeros(self.batch, np.int64)
        counts[self.sequences] = np.diff(self.bounds)
        return counts

    @cached_property
    def parts_of(self) -> NDArray[np.int32] | None:
        """Which part is each sequence's, [batch], -1: none; None if all are there in order."""
        if np.array_equal(self.sequences, np.arange(self.batch)):
            return None
        parts = np.full(self.batch, -1, np.int32)
        parts[self.sequences] = np.arange(len(self.sequences))
        return parts

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which rows are tokens, [total]; all that may be if only the GPU knows."""
        if isinstance(self.bounds, View):
            return np.ones(self.total, np.bool_)
        counted = np.zeros(self.total, np.bool_)
        counted[self.bounds[0] : self.bounds[-1]] = True
        return counted

    def places(self, first: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions [total] of tokens side by side, of sequences from `first` on.

        Other rows have 0. Of bounds that the host knows.
        """
        assert not isinstance(self.bounds, View)
        begin, end = int(self.bounds[0]), int(self.bounds[-1])
        positions = np.zeros(self.total, np.int64)
        ahead = np.repeat(first[self.sequences] - self.bounds[:-1], np.diff(self.bounds))
        positions[begin:end] = ahead + np.arange(begin, end)
        return positions

    def by_sequence(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows [total, ...] as [batch, most tokens of a sequence, ...], 0 where none is.

        Of bounds that the host knows.
        """
        assert not isinstance(self.bounds, View)
        counts = np.diff(self.bounds)
        apart = np.zeros((self.batch, int(counts.max(initial=0)), *rows.shape[1:]), rows.dtype)
        spans = zip(self.bounds.tolist(), counts.tolist(), strict=False)
        for b, (begin, count) in zip(self.sequences.tolist(), spans, strict=True):
            apart[b, :count] = rows[begin : begin + count]
        return apart


def checked_bounds(given: Any, parts: int, total: int) -> NDArray[np.int64]:
    """Check a `cu_seqlens_k` on the host.

    Raises
    ------
    ArgumentError
        If it is not the bounds of so many parts of so many rows.
    """
    bounds = whole_numbers("cu_seqlens_k", given, (parts + 1,)).astype(np.int64)
    if bounds[0] < 0 or bounds[-1] > total or (np.diff(bounds) < 0).any():
        expected = f"bounds from 0 to {total}, the rows of k, none less than the one before"
        raise ArgumentError("cu_seqlens_k", given, expected)
    return bounds
