"""One head of Q, K or V, with its scales in one form whatever their scope."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray
from .quantize import Operand, Quantized
from .scopes import spread

__all__ = ["Head", "scores"]

# Sums of integers are exact in float32 up to here, whatever their order.
FLOAT32_EXACT = 2**24


@dataclass(frozen=True, eq=False)
class Head:
    """The values ``matrix · token[:, None] · channel + vector``.

    Attributes
    ----------
    matrix : ndarray [token, head_dim]
        Codes in float32, as only floating-point matrix products run on BLAS, or values in float64.
    token : ndarray of float64 [token]
        Scales of tokens, 1 where there are none.
    channel, vector : ndarray of float64 [head_dim]
        Scales of channels, 1 where there are none, and the smoothing vector.
    """

    matrix: NDArray[Any]
    token: FloatArray
    channel: FloatArray
    vector: FloatArray

    @staticmethod
    def of(x: Operand, b: int, h: int, common: Literal["token", "channel"] = "channel") -> Head:
        """Take head `h` of batch `b`; a scale that all share is one of all tokens or channels."""
        if not isinstance(x, Quantized):
            n, d = x.shape[2:]
            return Head(x[b, h], np.ones(n), np.ones(d), np.zeros(d))
        codes = x.codes[b, h]
        n, d = codes.shape
        vector = np.zeros(d) if x.vector is None else x.vector[b, h].astype(np.float64)
        exact = codes.dtype == np.int8 and d * 127**2 < FLOAT32_EXACT
        one = x.scale[b : b + 1, h : h + 1].astype(np.float64)
        scale = spread(one, x.scope, x.block, n)[0, 0]
        if x.scope == "group":
            return Head(codes * scale, np.ones(n), np.ones(d), vector)
        per_token = common == "token" if x.scope == "tensor" else x.scope != "channel"
        return Head(
            codes.astype(np.float32 if exact else np.float64),
            np.broadcast_to(scale[:, 0], (n,)) if per_token else np.ones(n),
            np.ones(d) if per_token else np.broadcast_to(scale[0], (d,)),
            vector,
        )

    def scaled(self, factor: float) -> Head:
        """Multiply the scales of tokens."""
        return replace(self, token=self.token * factor)

    def tokens(self, which: range) -> Head:
        """Take some tokens."""
        at = slice(which.start, which.stop)
        return replace(self, matrix=self.matrix[at], token=self.token[at])


def scores(q: Head, k: Head) -> FloatArray:
    """Return ``q kᵀ`` [row, key] with both tokens' scales.

    Smoothing's vector stays out, and so do scales of channels, which Q and K never have.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        s: FloatArray = (q.matrix @ k.matrix.T).astype(np.float64)
        s *= q.token[:, None]
        s *= k.token
    return s
