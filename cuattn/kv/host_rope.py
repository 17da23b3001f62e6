"""Rotary embedding of new keys and queries in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import to_host
from ..reference.rope import rope
from .host_arrays import check_in_host_memory, host_signature
from .memory import Memory
from .packed_tokens import PackedTokens
from .rope import GivenRope, RopeSizes, check_reach, next_positions, places

__all__ = ["Turn", "turned"]


def turned(
    memory: Memory,
    given: GivenRope,
    x: NDArray[Any],
    dtype: str,
    counts: NDArray[np.int64],
    behind: int = 0,
    packed: PackedTokens | None = None,
) -> NDArray[np.float32]:
    """Return new keys, or queries beside the last tokens, turned by their positions.

    Parameters
    ----------
    memory : Memory
    given : GivenRope
    x : ndarray [batch, head, token, head_dim]
    dtype : str
        Of the caller's array.
    counts : ndarray of int64 [batch]
        Tokens of each sequence that count.
    behind : int
        How many of the last tokens of the cache they stand beside.
    packed : PackedTokens, optional
        How the caller has them end to end.

    Raises
    ------
    ArgumentError
        As `KVCache.append`.
    """
    turn = Turn(memory, given, dtype)
    tokens = x.shape[2]
    if given.positions is None:
        first = next_positions(memory.host_state) - behind
        check_reach(turn.sizes, int((first + counts)[counts > 0].max(initial=0)))
        positions = places(first, tokens)
    else:
        counted = np.arange(tokens) < counts[:, None] if packed is None else packed.counted
        positions = turn.positions(counted)
        if packed is not None:
            positions = packed.by_sequence(positions)
    return turn(x, positions)


class Turn:
    """Turns rows by tables that have been checked.

    Parameters
    ----------
    memory : Memory
    given : GivenRope
    dtype : str
        Of the caller's array.

    Attributes
    ----------
    sizes : RopeSizes

    Raises
    ------
    ArgumentError
        As `GivenRope.sizes`.
    """

    sizes: RopeSizes

    def __init__(self, memory: Memory, given: GivenRope, dtype: str) -> None:
        tables = (("rope.cos", given.rope.cos), ("rope.sin", given.rope.sin))
        of_cos, of_sin = (host_signature(table, name) for name, table in tables)
        self.sizes = given.sizes(of_cos, of_sin, dtype, memory.geometry.kv_format.head_dim)
        self._given = given
        self._cos, self._sin = (to_host(table, name).values for name, table in tables)

    def positions(self, counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the caller's, as `GivenRope.checked_positions`."""
        if hasattr(self._given.positions, "__dlpack_device__"):
            check_in_host_memory(self._given.positions, "positions")
        return self._given.checked_positions(self.sizes, counted)

    def __call__(self, x: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows [batch, head, token, head_dim] at positions [batch, token] turned."""
        interleaved = self.sizes.interleaved
        return rope(x, self._cos, self._sin, positions, interleaved=interleaved)
