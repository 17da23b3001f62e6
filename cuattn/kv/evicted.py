"""What the host knows of tokens that sequences have lost and others follow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

__all__ = ["Evicted"]


class Evicted(NamedTuple):
    """Tokens of each sequence that are gone, though some remain that came after them.

    Attributes
    ----------
    tokens : ndarray of int64 [batch]
        How many.
    before : ndarray of int64 [batch]
        How many tokens remain that came before the last of these.
    """

    tokens: NDArray[np.int64]
    before: NDArray[np.int64]

    def shortened(
        self, lengths: NDArray[np.int64], now: NDArray[np.int64], given: Any
    ) -> Evicted | None:
        """Return the same of sequences with fewer tokens; None if nothing is left to be known.

        Parameters
        ----------
        lengths, now : ndarray of int64 [batch]
            Tokens that remain, and those that there are.
        given
            What the caller gave for `lengths`, for the error.

        Raises
        ------
        ArgumentError
            If a sequence would have no token left that came after those that are gone, but others:
            then it would not be known which position the next one has.
        """
        wrong = (lengths > 0) & (lengths < now) & (lengths <= self.before) & (self.tokens > 0)
        if wrong.any():
            b = int(np.argmax(wrong))
            expected = (
                f"0 or more than {self.before[b]} for sequence {b}, behind whose first "
                f"{self.before[b]} tokens some were evicted, not {lengths[b]}"
            )
            raise ArgumentError("lengths", given, expected)
        stays = lengths > 0
        return Evicted(self.tokens * stays, self.before * stays).if_any()

    def of(self, sources: NDArray[np.int64]) -> Evicted | None:
        """Return the same of sequences in another order."""
        return Evicted(self.tokens[sources], self.before[sources]).if_any()

    def if_any(self) -> Evicted | None:
        """Return the same, None if no tokens are gone."""
        return self if self.tokens.any() else None
