"""The heads and rows of an input that a report looks at closely."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...reference.arrays import spans
from ...reference.quantize import Operands, operands
from ...scheme import Scheme
from ..inputs import Input

__all__ = ["Sample"]

HEADS = 4
# Of 128, as many as share what smoothing takes from Q.
ROW_BLOCKS = 8
ROWS = 128


@dataclass(frozen=True, eq=False)
class Sample:
    """Some heads of an input, evenly spaced, and blocks of rows.

    Attributes
    ----------
    input : Input
    heads : list of (int, int)
        Batch and query head.
    rows : list of range
    """

    input: Input
    heads: list[tuple[int, int]]
    rows: list[range]

    @staticmethod
    def of(x: Input) -> Sample:
        """Choose them."""
        shape = x.shape
        every = [(b, h) for b in range(shape.batch) for h in range(shape.num_q_heads)]
        blocks = list(spans(shape.seqlen_q, ROWS))
        return Sample(
            x,
            [every[i] for i in _evenly(len(every), HEADS)],
            [blocks[i] for i in _evenly(len(blocks), ROW_BLOCKS)],
        )

    def __bool__(self) -> bool:
        return bool(self.heads and self.rows and self.input.shape.seqlen_kv)

    def __str__(self) -> str:
        rows, every = sum(map(len, self.rows)), self.input.shape.seqlen_q
        return f"{self.which_heads}, " + (
            "all rows" if rows == every else f"{rows} of the {every} rows of each"
        )

    @property
    def which_heads(self) -> str:
        """How many of the heads these are."""
        every = self.input.shape.batch * self.input.shape.num_q_heads
        return "all heads" if len(self.heads) == every else f"{len(self.heads)} of {every} heads"

    def operands(self, scheme: Scheme) -> Operands:
        """Return what a scheme makes of these heads, with one head of K and V for each of Q."""
        x, group = self.input, self.input.shape.group

        def taken(array: NDArray[np.floating], group: int) -> NDArray[np.floating]:
            return np.stack([array[b, h // group] for b, h in self.heads])[None]

        return operands(taken(x.q, 1), taken(x.k, group), taken(x.v, group), scheme)


def _evenly(n: int, most: int) -> list[int]:
    """Return at most so many of the first `n` numbers, the first and the last among them."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, most)).round())] if n else []
