"""What a KV cache holds: its format, and its contents on request."""

from __future__ import annotations

from os import PathLike
from typing import Any

from ..common.public import class_naming_keywords
from ..kv_format import KVFormat
from ..reference.kv_cache import CachedOperand
from .contents import cached_operands, values
from .files import write
from .lengths import Lengths

__all__ = ["Holdings"]


@class_naming_keywords
class Holdings(Lengths):
    """What a `KVCache` says of itself; nothing here changes it."""

    @property
    def format(self) -> KVFormat:
        """What the numbers mean."""
        return self._memory.geometry.kv_format

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token of one sequence: codes and scales of all heads, of K and V.

        With nested codes those of a token of 4 bits. The lower halves take memory once, as much
        again for `first` + `recent` + 16 tokens of each sequence, which `nbytes` has.
        """
        return self._memory.geometry.bytes_per_token

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
