"""Which keys a query row sees, and sums over values that respect it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray, Shape, spans

__all__ = ["UNLIMITED", "Mask", "operations", "visited", "weighted_sum"]

# Of a side of a window: no bound.
UNLIMITED = -1


@dataclass(frozen=True)
class Mask:
    """Visibility of keys by their position, aligned at the bottom right.

    The last row stands beside the last key: row i is at ``i + (seqlen_kv - seqlen_q)``. With
    `is_causal` it sees no key behind that; with a window none further away than its sides. If
    queries outnumber keys, the first rows may see none.

    Attributes
    ----------
    shape : Shape
    is_causal : bool
    window_size : tuple of int (left, right)
        How many keys before and behind a row's own it sees; -1 for all.
    """

    shape: Shape
    is_causal: bool
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED)

    def own(self, rows: range) -> NDArray[np.intp]:
        """Return the key that each row stands beside, which may be none of the keys."""
        return np.arange(rows.start, rows.stop) + (self.shape.seqlen_kv - self.shape.seqlen_q)

    def bounds(self, rows: range) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the first key that each row sees, and the one behind its last."""
        n = self.shape.seqlen_kv
        left, right = self.window_size
        if self.is_causal:
            right = 0
        own = self.own(rows)
        first = np.zeros_like(own) if left == UNLIMITED else np.clip(own - left, 0, n)
        stop = np.full_like(own, n) if right == UNLIMITED else np.clip(own + right + 1, 0, n)
        return first, stop

    def num_visible(self, rows: range) -> NDArray[np.intp]:
        """Count the keys that each row sees; without a window they are the first ones."""
        first, stop = self.bounds(rows)
        counts: NDArray[np.intp] = np.maximum(stop - first, 0)
        return counts

    def blocks(self, rows: range, block: int) -> list[range]:
        """Cut the keys into blocks, and return those that are not hidden from all of these rows.

        They start at multiples of `block`, and are in the order of the keys.
        """
        first, stop = self.bounds(rows)
        return [keys for keys in spans(int(stop[-1]), block) if keys.stop > first[0]]

    def block(self, rows: range, keys: range) -> NDArray[np.bool_] | None:
        """Return the visibility [row, key] of a block, or None if all of it is visible."""
        first, stop = self.bounds(rows)
        if first[-1] <= keys.start and keys.stop <= stop[0]:
            return None
        j = np.arange(keys.start, keys.stop)
        visible: NDArray[np.bool_] = (first[:, None] <= j) & (j < stop[:, None])
        return visible


def visited(blocks: list[range]) -> list[range]:
    """Order blocks of keys as kernels visit them: as they come, but for the very first, the last.

    The first tokens of trained models are attention sinks: taken first, they would raise the
    maximum that P of all others is rounded against. FlashAttention-3 goes from the last block to
    the first, to the same effect.
    """
    return blocks[1:] + blocks[:1] if blocks and blocks[0].start == 0 else blocks


def operations(
    shape: Shape,
    is_causal: bool,
    head_dim_v: int | None = None,
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
) -> int:
    """Return the multiplications and additions of Q Kᵀ and P V that the mask leaves.

    Parameters
    ----------
    shape : Shape
    is_causal : bool
    head_dim_v : int, optional
        That of V, if it is another one.
    window_size : tuple of int (left, right)
    """
    head_dim_v = shape.head_dim if head_dim_v is None else head_dim_v
    pairs = int(Mask(shape, is_causal, window_size).num_visible(range(shape.seqlen_q)).sum())
    return 2 * shape.batch * shape.num_q_heads * (shape.head_dim + head_dim_v) * pairs


def weighted_sum(p: FloatArray, v: FloatArray, visible: NDArray[np.bool_] | None) -> FloatArray:
    """Return ``p @ v`` in which a hidden token contributes nothing, be it NaN or infinite.

    Parameters
    ----------
    p : ndarray [row, key]
        Weights; 0 where the key is hidden.
    v : ndarray [key, channel]
    visible : ndarray of bool [row, key], or None
        None if every row sees every key.
    """
    finite = np.isfinite(v).all(axis=1)
    if visible is None or finite.all():
        return p @ v
    o: FloatArray = p[:, finite] @ v[finite]
    for j in np.flatnonzero(~finite):
        o += np.where(visible[:, j, None], p[:, j, None] * v[j], 0.0)
    return o
