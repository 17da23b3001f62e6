"""Which keys a query row sees, and sums over values that respect it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray, Shape

__all__ = ["Mask", "operations", "weighted_sum"]


@dataclass(frozen=True)
class Mask:
    """Visibility of keys: all of them, or causal and aligned at the bottom right.

    With `is_causal`, row i sees key j if ``j <= i + (seqlen_kv - seqlen_q)``: the last row sees
    every key. If queries outnumber keys, the first rows see none.
    """

    shape: Shape
    is_causal: bool

    def num_visible(self, rows: range) -> NDArray[np.intp]:
        """Count the keys that each row sees; they are the first ones."""
        n = self.shape.seqlen_kv
        if not self.is_causal:
            return np.full(len(rows), n)
        last = np.arange(rows.start, rows.stop) + (n - self.shape.seqlen_q)
        return np.clip(last + 1, 0, n)

    def end(self, rows: range) -> int:
        """Count the keys that at least one of these rows sees."""
        return int(self.num_visible(rows[-1:])[0])

    def block(self, rows: range, keys: range) -> NDArray[np.bool_] | None:
        """Return the visibility [row, key] of a block, or None if all of it is visible."""
        counts = self.num_visible(rows)
        if counts[0] >= keys.stop:
            return None
        visible: NDArray[np.bool_] = np.arange(keys.start, keys.stop) < counts[:, None]
        return visible


def operations(shape: Shape, is_causal: bool) -> int:
    """Return the multiplications and additions of Q Kᵀ and P V that the mask leaves."""
    pairs = int(Mask(shape, is_causal).num_visible(range(shape.seqlen_q)).sum())
    return 4 * shape.batch * shape.num_q_heads * shape.head_dim * pairs


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
