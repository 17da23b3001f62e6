"""What the rounding of P does: its codes, and where it becomes zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ..presets import resolve
from ..scheme import Scheme
from .arrays import Float32Array, FloatArray, Progress, Shape
from .code_counts import largest_p, p_numbers
from .emulate import emulate
from .masking import Mask
from .quantize import Operands
from .softmax import PBlock

__all__ = ["PRounding", "look_at_p"]

# At most so many counts of codes, and so many runs of rows and of keys.
COUNTS = 256
RUNS = 64


@dataclass(frozen=True, eq=False)
class PRounding:
    """The codes of P in some rows of each head; of visible keys only.

    Attributes
    ----------
    counts : ndarray of int64 [at most 256]
        How often the numbers ``width * i … width * (i + 1) - 1`` of `code_counts.p_numbers` occur.
    width : int
        A power of two.
    seen, zeros : ndarray of float64 [run of rows, run of keys]
        How many elements there are, and how many of them round to zero.
    lost : float
        The share of a row's weight that is in those, on average: what their rounding takes from the
        sum P V, with V's scale where a scheme has made it a part of P.
    """

    counts: NDArray[np.int64]
    width: int
    seen: FloatArray
    zeros: FloatArray
    lost: float

    @property
    def zero_share(self) -> float:
        """The share of P that rounds to zero."""
        seen = float(self.seen.sum())
        return float(self.zeros.sum()) / seen if seen else 0.0


def look_at_p(
    ops: Operands,
    scheme: str | Scheme,
    rows: Sequence[range],
    *,
    scale: float | None = None,
    is_causal: bool = False,
    progress: Progress | None = None,
) -> PRounding:
    """Emulate a scheme on some rows and count what becomes of P.

    Parameters
    ----------
    ops, scheme, scale, is_causal, progress
        As for `emulate.emulate`.
    rows : sequence of range
        Rows of each head to look at.

    Raises
    ------
    ArgumentError
        If `ops` does not fit the scheme or itself.
    """
    scheme = resolve(scheme)
    counter = _Counter(ops, scheme, rows, is_causal)
    emulate(
        ops,
        scheme,
        scale=scale,
        is_causal=is_causal,
        row_blocks=rows,
        observe=counter,
        progress=progress,
    )
    some = counter.weight > 0.0
    lost = float(np.mean(counter.lost[some] / counter.weight[some])) if some.any() else 0.0
    return PRounding(counter.counts, counter.width, counter.seen, counter.zeros, lost)


class _Counter:
    """Adds up over blocks of keys as `softmax.OnlineSoftmax` does."""

    def __init__(
        self, ops: Operands, scheme: Scheme, rows: Sequence[range], is_causal: bool
    ) -> None:
        self.scheme, self.compute = scheme, ops.compute
        shape = ops.shape
        self.mask = Mask(shape, is_causal)
        numbers = largest_p(scheme, ops.compute) + 1
        self.width = 2 ** max(0, int(np.ceil(np.log2(numbers / COUNTS))))
        self.counts = np.zeros(-(-numbers // self.width), np.int64)
        members = np.fromiter(chain.from_iterable(rows), np.intp)
        self.run_of_row = _runs(members, shape.seqlen_q)
        self.run_of_key = _runs(np.arange(shape.seqlen_kv), shape.seqlen_kv)
        self.seen = np.zeros((self.run_of_row.shape[1], self.run_of_key.shape[1]))
        self.zeros = np.zeros_like(self.seen)
        self.weight, self.lost = _sums(shape), _sums(shape)

    def __call__(self, b: int, h: int, rows: range, keys: range, p: PBlock) -> None:
        visible = self.mask.block(rows, keys)
        if visible is None:
            visible = np.ones(p.exact.shape, np.bool_)
        numbers = p_numbers(p.codes, self.scheme, self.compute)
        zero = visible & (numbers == 0)
        self.counts += np.bincount(numbers[visible] // self.width, minlength=self.counts.size)
        for total, which in ((self.seen, visible), (self.zeros, zero)):
            of_keys = which.astype(np.float32) @ self.run_of_key[keys.start : keys.stop]
            total += self.run_of_row[rows.start : rows.stop].T @ of_keys
        at = (b, h, slice(rows.start, rows.stop))
        for total, exact in ((self.weight, p.exact), (self.lost, np.where(zero, p.exact, 0.0))):
            total[at] = total[at] * p.shrink + exact.sum(axis=1) * p.weight


def _sums(shape: Shape) -> FloatArray:
    return np.zeros((shape.batch, shape.num_q_heads, shape.seqlen_q))


def _runs(members: NDArray[np.intp], n: int) -> Float32Array:
    """Return to which run each of `n` belongs, as [n, run] of ones and zeros."""
    runs = min(members.size, RUNS)
    matrix = np.zeros((n, runs), np.float32)
    matrix[members, np.arange(members.size) * runs // max(members.size, 1)] = 1.0
    return matrix
