"""The error of each query row and of each head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from .arrays import FloatArray

__all__ = ["RowErrors"]


@dataclass(frozen=True, eq=False)
class RowErrors:
    r"""L1 errors of rows, from which those of heads follow.

    Attributes
    ----------
    error : ndarray of float64 [batch, head, row]
        :math:`\sum_d |x - r|` over the channels of a row.
    size : ndarray of float64 [batch, head, row]
        :math:`\sum_d |r|`.
    """

    error: FloatArray
    size: FloatArray

    @staticmethod
    def of(o: ArrayLike, reference: ArrayLike) -> RowErrors:
        """Compare two outputs [batch, head, row, head_dim].

        Raises
        ------
        ArgumentError
            If the shapes differ.
        """
        x, r = np.asarray(o), np.asarray(reference)
        if x.shape != r.shape:
            raise ArgumentError("o.shape", x.shape, f"the shape {r.shape} of the reference")
        with np.errstate(invalid="ignore"):
            error = np.abs(x.astype(np.float64, copy=False) - r).sum(axis=-1)
        return RowErrors(error, np.abs(r).sum(axis=-1, dtype=np.float64))

    def rows(self) -> FloatArray:
        """Return the relative L1 error of each row, [batch, head, row]."""
        return _ratio(self.error, self.size)

    def heads(self) -> FloatArray:
        """Return the relative L1 error of each head, [batch, head]."""
        return _ratio(self.error.sum(axis=2), self.size.sum(axis=2))

    def steps(self, most: int) -> FloatArray:
        """Return the relative L1 error of at most so many runs of rows, [batch, head, run]."""
        starts = np.unique(np.linspace(0, self.error.shape[2], most, endpoint=False, dtype=int))
        if self.error.shape[2] == 0:
            return self.error
        return _ratio(
            np.add.reduceat(self.error, starts, axis=2), np.add.reduceat(self.size, starts, axis=2)
        )


def _ratio(error: FloatArray, size: FloatArray) -> FloatArray:
    """Divide; 0 where there is no error, whatever the size."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = np.where(error == 0.0, 0.0, error / size)
    return ratio
