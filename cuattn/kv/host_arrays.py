"""A caller's arrays for a KV cache in host memory: where they are, and what tokens they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import device_of
from ..arrays.host import look_on_host
from ..arrays.view import CPU, Array
from ..errors import ArgumentError
from ..reference.arrays import whole_counts
from .memory import Memory
from .packed_tokens import GivenTokens, PackedTokens, checked_bounds

__all__ = ["check_in_host_memory", "fresh_on_host", "host_signature", "of_tokens"]


def check_in_host_memory(x: Any, name: str) -> None:
    """Check that an array is where a cache in host memory is."""
    if device_of(x, name)[0] != CPU:
        raise ArgumentError(name, x, "in host memory, as the cache is")


def host_signature(x: Any, name: str) -> Array:
    """Return the signature of an array that is where such a cache is."""
    check_in_host_memory(x, name)
    # NumPy reads elements wherever they begin.
    return look_on_host(x, name).signature._replace(misalignment=0)


def fresh_on_host(
    memory: Memory, given: GivenTokens, sequences: NDArray[np.int64] | None, tokens: int
) -> tuple[NDArray[np.int64], PackedTokens | None]:
    """Return how many tokens of each sequence there are, and how they lie end to end if they do.

    Parameters
    ----------
    sequences : ndarray of int64 [parts], optional
        See `GivenTokens.checked_sequences`.
    tokens : int
        Of each sequence in the arrays, or of all that lie end to end.

    Raises
    ------
    ArgumentError
        If the caller says something else, or not on the host.
    """
    batch = memory.geometry.batch
    for name, x in (("counts", given.counts), ("cu_seqlens_k", given.cu_seqlens_k)):
        if x is not None and hasattr(x, "__dlpack_device__"):
            check_in_host_memory(x, name)
    if sequences is None:
        return whole_counts("counts", given.counts, batch, tokens), None
    bounds = checked_bounds(given.cu_seqlens_k, len(sequences), tokens)
    packed = PackedTokens(batch, tokens, sequences, bounds)
    return packed.counts, packed


def of_tokens(mask: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """Return a mask of the last tokens of each sequence as one of all tokens of the longest."""
    columns = mask.shape[-1]
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    visible = mask.dtype.type(mask.dtype == np.bool_)
    of_tokens = np.full((len(lengths), *mask.shape[1:3], int(lengths.max())), visible)
    for b, n in enumerate(lengths.tolist()):
        some = min(n, columns)
        of_tokens[b, ..., n - some : n] = mask[b % len(mask), ..., columns - some :]
    return of_tokens
