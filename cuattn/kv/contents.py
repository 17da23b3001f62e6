"""What a KV cache takes and holds: bytes, codes, and the values that they stand for."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

from ..kv_format import UNIT_TOKENS, KVFormat
from ..reference.kv_cache import CachedOperand
from .files import write
from .options import bytes_of, check_choices, geometry_of
from .read import cached_operands, values
from .sequences import Sequences

__all__ = ["Contents"]


class Contents(Sequences):
    """What `KVCache` says of its tokens; see `Sequences`."""

    @property
    def format(self) -> KVFormat:
        """What the numbers mean."""
        return self._store.geometry.kv_format

    @property
    def nbytes(self) -> int:
        """Bytes of the cache, but for a few counters."""
        return self._store.nbytes

    @staticmethod
    def bytes_needed(
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        smooth_k: bool = True,
        device: Literal["cpu"] | None = None,
        **options: Any,
    ) -> int:
        """Return `nbytes` of a cache that is not made, from the arguments of `KVCache`.

        Raises
        ------
        ArgumentError
            If one is wrong.
        """
        geometry = geometry_of(batch, num_kv_heads, head_dim, capacity, **options)
        check_choices(smooth_k, device)
        return bytes_of(geometry, smooth_k)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token of one sequence: codes and scales of all heads, of K and V."""
        return self._store.geometry.num_kv_heads * self.format.unit_bytes // UNIT_TOKENS

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
        lengths = self._known_lengths()
        self._store.wait()
        with self._store.call_on(None):
            return values(self._store, lengths, dtype)

    def codes(self) -> tuple[CachedOperand, CachedOperand]:
        """Return codes and scales of K and V on the host; waits for the GPU."""
        lengths = self._known_lengths()
        self._store.wait()
        with self._store.call_on(None):
            return cached_operands(self._store, lengths)

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
        write(path, self._store, self._known_lengths())
