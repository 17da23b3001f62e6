"""Which rows of an append are whose tokens, as the GPU's kernels read it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import Caller, device_of
from ..arrays.view import CPU, View, as_cupy, view_cupy
from ..reference.arrays import whole_counts
from .device import DeviceMemory
from .packed_tokens import GivenTokens, PackedTokens, checked_bounds

__all__ = ["FreshTokens", "TokenViews", "fresh_tokens", "views_of"]


class FreshTokens(NamedTuple):
    """Tokens that are to be appended.

    Attributes
    ----------
    counts : ndarray of int64 [batch], View or None
        How many of each sequence of the cache there are; a View if only the GPU knows; None: all.
    packed : PackedTokens or None
        How they lie end to end, if they do.
    """

    counts: NDArray[np.int64] | View | None
    packed: PackedTokens | None = None


class TokenViews(NamedTuple):
    """The same in the GPU's memory, int32; None of what a kernel is to do without."""

    counts: View | None = None
    bounds: View | None = None
    parts: View | None = None

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Where they are, 0 of None."""
        counts, bounds, parts = self
        return (
            0 if counts is None else counts.ptr,
            0 if bounds is None else bounds.ptr,
            0 if parts is None else parts.ptr,
        )


def fresh_tokens(
    memory: DeviceMemory,
    caller: Caller,
    given: GivenTokens,
    sequences: NDArray[np.int64] | None,
    tokens: int,
) -> FreshTokens:
    """Check which rows are whose tokens.

    Parameters
    ----------
    sequences : ndarray of int64 [parts], optional
        Of tokens that lie end to end; see `GivenTokens.checked_sequences`.
    tokens : int
        Of each sequence in the arrays, or of all that lie end to end.

    Raises
    ------
    ArgumentError
        If what is on the host is wrong, or an array has another place, type or shape.
    """
    batch = memory.geometry.batch
    if sequences is None:
        if given.counts is None or not _on_host(given.counts, "counts"):
            x = given.counts
            seen = None if x is None else memory.look_at_integers(caller, x, "counts", batch)
            return FreshTokens(seen)
        return FreshTokens(whole_counts("counts", given.counts, batch, tokens))
    bounds: NDArray[np.int64] | View
    parts = len(sequences)
    if _on_host(given.cu_seqlens_k, "cu_seqlens_k"):
        bounds = checked_bounds(given.cu_seqlens_k, parts, tokens)
    else:
        bounds = memory.look_at_integers(caller, given.cu_seqlens_k, "cu_seqlens_k", parts + 1)
    packed = PackedTokens(batch, tokens, sequences, bounds)
    return FreshTokens(bounds if isinstance(bounds, View) else packed.counts, packed)


def views_of(memory: DeviceMemory, fresh: FreshTokens, tokens: int) -> TokenViews:
    """Return what kernels read.

    Raises
    ------
    UnsupportedError
        If something comes from the host while a graph is captured.
    """
    if fresh.packed is not None:
        parts = fresh.packed.parts_of
        of_parts = None if parts is None else _read(memory, parts)
        return TokenViews(None, _read(memory, fresh.packed.bounds), of_parts)
    counts = fresh.counts
    if counts is None or (not isinstance(counts, View) and (counts == tokens).all()):
        return TokenViews()
    return TokenViews(_read(memory, counts))


def _read(memory: DeviceMemory, x: NDArray[Any] | View) -> View:
    if not isinstance(x, View):
        return view_cupy(memory.sent(x.astype(np.int32)))
    if x.dtype == "int32" and x.strides == (1,):
        return x
    return view_cupy(as_cupy(x).astype(np.int32, order="C"))


def _on_host(x: Any, name: str) -> bool:
    return not hasattr(x, "__dlpack_device__") or device_of(x, name)[0] == CPU
