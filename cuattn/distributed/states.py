"""Results of a rank's calls, each of some of its rows, and what they merge to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..merging import merge_states
from .arrays import concat, empty, is_writable, rows, zeros

__all__ = ["States"]


class States:
    """Partial results of the rows of a rank, merged in the order in which they are added.

    Parameters
    ----------
    q : array
        Queries of the rank, whose library, type and layout results have.
    head_dim_v : int
    layout : {"HND", "NHD"}
    """

    def __init__(self, q: Any, head_dim_v: int, layout: str) -> None:
        self._q, self._layout = q, layout
        self._axis = 2 if layout == "HND" else 1
        self._shape = (*q.shape[:3], head_dim_v)
        self._parts: list[tuple[int, int, Any, Any]] = []

    def add(self, start: int, o: Any, lse: Any, count: int) -> None:
        """Take a result of rows from `start` on, of which the first `count` are meant."""
        if o.shape[self._axis] != count:
            o, lse = rows(o, self._axis, 0, count), rows(lse, 2, 0, count)
        self._parts.append((start, start + count, o, lse))

    def merged(self, sinks: Any = None) -> tuple[Any, Any]:
        """Return o and lse of all rows.

        Parameters
        ----------
        sinks : array [num_q_heads], optional
            As for `cuattn.attention`: they count once, as a last part without a value.
        """
        count = int(self._shape[self._axis])
        ends = {end for start, stop, _, _ in self._parts for end in (start, stop)}
        cuts = sorted(ends | {0, count})
        pieces = list(pairwise(cuts)) or [(0, 0)]
        if len(pieces) == 1:
            return self._of_rows(*pieces[0], sinks, None)
        if not is_writable(self._q):
            made = [self._of_rows(*piece, sinks, None) for piece in pieces]
            return (
                concat([o for o, _ in made], self._axis),
                concat([lse for _, lse in made], 2),
            )
        o = empty(self._q, self._shape)
        lse = empty(self._q, self._lse_shape(count), "float32")
        for start, stop in pieces:
            _, of_rows = self._of_rows(start, stop, sinks, rows(o, self._axis, start, stop))
            lse[:, :, start:stop] = of_rows
        return o, lse

    def _of_rows(self, start: int, stop: int, sinks: Any, out: Any) -> tuple[Any, Any]:
        """Merge what there is of some rows, between two of which no part begins or ends."""
        found = [
            (
                rows(o, self._axis, start - first, stop - first),
                rows(lse, 2, start - first, stop - first),
            )
            for first, last, o, lse in self._parts
            if first <= start and stop <= last
        ]
        if not found or sinks is not None:
            found.append(self._without_keys(stop - start, sinks))
        if len(found) == 1 and out is None:
            return found[0]
        return merge_states(
            [o for o, _ in found], [lse for _, lse in found], layout=self._layout, out=out
        )

    def _without_keys(self, count: int, sinks: Any) -> tuple[Any, Any]:
        """Return the state of rows that see no key: of their sinks, if there are any."""
        shape = list(self._shape)
        shape[self._axis] = count
        o = zeros(self._q, tuple(shape))
        lse = zeros(self._q, self._lse_shape(count), "float32")
        return o, (lse - np.inf if sinks is None else lse + sinks[:, None])

    def _lse_shape(self, count: int) -> tuple[int, int, int]:
        heads = self._shape[1 if self._layout == "HND" else 2]
        return int(self._shape[0]), int(heads), count
