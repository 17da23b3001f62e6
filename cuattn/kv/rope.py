"""Rotary embedding of new keys and of queries: what the caller gives, and what is checked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays.view import Array
from ..common.public import class_naming_keywords
from ..errors import ArgumentError
from ..reference.arrays import whole_numbers
from .host_state import HostState

__all__ = [
    "GivenRope",
    "Rope",
    "RopeSizes",
    "check_reach",
    "next_positions",
    "places",
]


@class_naming_keywords
@dataclass(frozen=True, eq=False)
class Rope:
    """Tables of a rotary embedding, which `KVCache.append` turns keys by and `attend` queries.

    A pair of channels (x1, x2) becomes ``(x1 cos - x2 sin, x2 cos + x1 sin)`` in float32, every
    product rounded, and is quantized from there: `cuattn.reference.rope.rope`.

    Parameters
    ----------
    cos, sin : array [positions, rope_dim / 2]
        float32, or of the type of what is turned, where the cache is, of any library. What is not
        contiguous float32 is copied first, at every call. Channels from rope_dim on are not turned;
        rope_dim is at most head_dim.
    interleaved : bool
        Pairs are neighbouring channels, 2 i and 2 i + 1, as in GPT-J and llama.cpp; else channels i
        and rope_dim / 2 + i, as in GPT-NeoX and Hugging Face's Llama.
    """

    cos: Any
    sin: Any
    interleaved: bool = False


class RopeSizes(NamedTuple):
    """What a kernel is told of tables."""

    pairs: int
    num_positions: int
    interleaved: bool


class GivenRope(NamedTuple):
    """The arguments `rope` and `positions` of a call."""

    rope: Rope
    positions: Any

    @staticmethod
    def of(rope: Any, positions: Any) -> GivenRope | None:
        """Check the kinds of the arguments; None if nothing turns.

        Raises
        ------
        ArgumentError
            If they are anything else.
        """
        if rope is None:
            if positions is not None:
                raise ArgumentError("positions", positions, "None without rope")
            return None
        if not isinstance(rope, Rope):
            raise ArgumentError("rope", rope, "a cuattn.Rope")
        if not isinstance(rope.interleaved, bool):
            raise ArgumentError("rope.interleaved", rope.interleaved, "True or False")
        return GivenRope(rope, positions)

    def sizes(self, cos: Array, sin: Array, dtype: str, head_dim: int) -> RopeSizes:
        """Check the tables.

        Parameters
        ----------
        cos, sin : Array
        dtype : str
            Of what is turned.
        head_dim : int

        Raises
        ------
        ArgumentError
            If they do not fit it or each other.
        """
        for name, x in (("cos", cos), ("sin", sin)):
            if x.dtype not in ("float32", dtype):
                either = "float32" if dtype == "float32" else f"float32 or {dtype}"
                raise ArgumentError(f"rope.{name}.dtype", x.dtype, either)
            if len(x.shape) != 2 or not 1 <= x.shape[1] <= head_dim // 2 or not x.shape[0]:
                expected = f"(positions, pairs), with 1 to {head_dim // 2} pairs"
                raise ArgumentError(f"rope.{name}.shape", x.shape, expected)
        if sin.shape != cos.shape:
            raise ArgumentError("rope.sin.shape", sin.shape, f"{cos.shape}, as rope.cos has it")
        return RopeSizes(cos.shape[1], cos.shape[0], self.rope.interleaved)

    def checked_positions(self, sizes: RopeSizes, counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the caller's positions, which are on the host.

        Parameters
        ----------
        sizes : RopeSizes
        counted : ndarray of bool, [batch, token] or, of tokens end to end, [token]
            Which of them mean something.

        Raises
        ------
        ArgumentError
            If they are anything else, or one that counts is not in the tables.
        """
        given = whole_numbers("positions", self.positions, counted.shape)
        wrong = counted & ((given < 0) | (given >= sizes.num_positions))
        if wrong.any():
            expected = f"from 0 to {sizes.num_positions - 1}, which rope.cos has"
            raise ArgumentError("positions", int(given[wrong][0]), expected)
        positions: NDArray[np.int64] = given.astype(np.int64)
        return positions


def next_positions(host_state: HostState) -> NDArray[np.int64]:
    """Return the position of the next token of each sequence, of lengths that are known."""
    evicted = host_state.evicted
    return host_state.lengths if evicted is None else host_state.lengths + evicted.tokens


def check_reach(sizes: RopeSizes, end: int) -> None:
    """Check that tables have all positions before `end`.

    Raises
    ------
    ArgumentError
        If they have not.
    """
    if end > sizes.num_positions:
        shape = sizes.num_positions, sizes.pairs
        raise ArgumentError("rope.cos.shape", shape, f"of {end} positions at least")


def places(first: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """Return the positions [batch, token] of tokens side by side; before the first one 0."""
    positions: NDArray[np.int64] = np.maximum(first[:, None] + np.arange(tokens), 0)
    return positions
