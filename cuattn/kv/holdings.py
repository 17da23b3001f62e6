"""What a KV cache holds: its format, sizes and lengths, and its contents on request."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kv_format import KVFormat
from ..reference.kv_cache import CachedOperand
from .contents import cached_operands, values
from .files import write
from .memory import Memory

__all__ = ["Holdings"]


class Holdings:
    """What a `KVCache` says of itself; nothing here changes it."""

    _memory: Memory

    @property
    def format(self) -> KVFormat:
        """What the numbers mean."""
        return self._memory.geometry.kv_format

    @property
    def nbytes(self) -> int:
        """Bytes of the cache, but for a few counters."""
        return self._memory.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token of one sequence: codes and scales of all heads, of K and V.

        With nested codes those of a token of 4 bits. The lower halves take memory once, as much
        again for `first` + `recent` + 16 tokens of each sequence, which `nbytes` has.
        """
        return self._memory.geometry.bytes_per_token

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

    def gather(self, dtype: str = "float16") -> tuple[Any, Any]:
        """Return K and V as they are represented, in new arrays; waits for the GPU.

        Parameters
        ----------
        dtype : {"float16", "bfloat16", "float32"}

        Returns
        -------
        k, v : array [batch, num_kv_heads, longest length, head_dim]
            Of CuPy, or of NumPy for a cache in host memory; 0 beyond the length of a sequence.

        Raises
        ------
        ArgumentError
            For another type.
        """
        with self._memory.at_rest() as lengths:
            return values(self._memory, lengths, dtype)

    def codes(self) -> tuple[CachedOperand, CachedOperand]:
        """Return codes and scales of K and V on the host; waits for the GPU."""
        with self._memory.at_rest() as lengths:
            return cached_operands(self._memory, lengths)

    def save(self, path: str | PathLike[str]) -> None:
        """Write what the cache holds to a file of the safetensors format, whole or not at all.

        Waits for the GPU.

        Raises
        ------
        ArgumentError
            If there can be no such file.
        CuattnError
            If the package safetensors is missing.
        """
        with self._memory.at_rest() as lengths:
            write(path, self._memory, lengths)
