"""How many tokens a cache has, and where they are, as its caller asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import Memory

__all__ = ["Lengths"]


class Lengths:
    """What a cache says of its sequences, whatever a token is."""

    _memory: Memory

    @property
    def nbytes(self) -> int:
        """Bytes of the cache, but for a few counters."""
        return self._memory.nbytes

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence, int32 [batch]; waits for the GPU if only that knows.

        Raises
        ------
        ArgumentError
            If the GPU has refused an append since the last time or `reset`, of which nothing was
            written. The lengths can be read the next time.
        """
        return self._memory.known_lengths().astype(np.int32)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of the next token of each sequence, int64 [batch], as rotary embeddings count.

        It is `lengths`, and tokens that `evict` or a window has taken from before the last ones.
        Waits and raises as `lengths`.
        """
        lengths = self._memory.known_lengths()
        evicted = self._memory.host_state.evicted
        return lengths.copy() if evicted is None else lengths + evicted.tokens

    @property
    def device_lengths(self) -> Any:
        """The same where the cache is: the array int32 [batch] that its kernels use."""
        return self._memory.lengths

    @property
    def page_table(self) -> NDArray[np.int32] | None:
        """Pages of each sequence, int32 [batch, pages of the capacity]; -1 where there is none.

        A page is in several rows if sequences share it. None for a cache without pages.
        """
        pages = self._memory.host_state.pages
        return None if pages is None else pages.table
