"""The all-to-all of Ulysses: all heads of a rank's tokens for some of all tokens, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from .arrays import concat, from_bytes, raw_bytes, rows
from .call import Call
from .group import Group
from .placement import Run

__all__ = ["HeadExchange", "Shard", "heads_of"]


class Shard:
    """What one rank has: rows, and keys piece by piece.

    Attributes
    ----------
    queries : tuple of Run
    pieces : list of Piece
    """

    def __init__(self, queries: Sequence[Run], keys: Sequence[Run], call: Call) -> None:
        self.queries = tuple(queries)
        self.tokens = sum(run.tokens for run in queries)
        self.pieces = call.pieces(keys)


def heads_of(heads: int, group: Group, rank: int | None = None) -> tuple[int, int]:
    """Return the first head of a rank, and that behind its last one."""
    each = heads // group.size
    first = (group.rank if rank is None else rank) * each
    return first, first + each


class HeadExchange:
    """The way of a rank's tokens to those who have their heads, and of results back."""

    def __init__(
        self, call: Call, shards: Sequence[Sequence[Shard]], group: Group, node: int
    ) -> None:
        self._call, self._group = call, group
        self._node = shards[node]
        self._few = call.with_heads(group.size)
        self._head_axis = 3 - call.axis

    def to_heads(self, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
        """Return all rows of the node, and a parcel of all its keys, of this rank's heads."""
        call, few, group = self._call, self._few, self._group
        own = self._node[group.rank]
        sizes = [sum(few.sizes(rank.pieces)) for rank in self._node]
        sends, receives = [], []
        for to in range(group.size):
            some = [self._heads(x, to) for x in (q, k, v)]
            message = call.xp.empty(sizes[group.rank] + self._bytes_of_rows(own, q), "uint8")
            few.pack(some[1], some[2], own.pieces, message[: sizes[group.rank]])
            message[sizes[group.rank] :] = raw_bytes(some[0], call.xp)
            sends.append(message)
        for rank, nbytes in zip(self._node, sizes, strict=True):
            receives.append(call.xp.empty(nbytes + self._bytes_of_rows(rank, q), "uint8"))
        group.all_to_all(sends, receives).wait()
        parts = []
        for rank, nbytes, message in zip(self._node, sizes, receives, strict=True):
            shape = self._shape(rank.tokens, q.shape[3])
            parts.append(from_bytes(message[nbytes:], shape, call.carrier.dtype, q))
        parcels = [message[:nbytes] for message, nbytes in zip(receives, sizes, strict=True)]
        return concat(parts, call.axis), call.xp.concatenate(parcels)

    def to_tokens(self, o: Any, lse: Any, q: Any, with_lse: bool) -> tuple[Any, Any]:
        """Return results of this rank's tokens, of all heads, from those of all tokens."""
        call = self._call
        axis, dtype = call.axis, call.carrier.dtype
        whole = self._back(o, axis, self._head_axis, lambda n: self._shape(n, o.shape[3]), dtype, q)
        if not with_lse:
            return whole, None
        batch, heads = lse.shape[:2]
        return whole, self._back(lse, 2, 1, lambda n: (batch, heads, n), "float32", q)

    def _back(self, x: Any, axis: int, heads: int, shape: Any, dtype: str, like: Any) -> Any:
        xp, group = self._call.xp, self._group
        ends = list(accumulate(rank.tokens for rank in self._node))
        sends = [
            raw_bytes(rows(x, axis, end - rank.tokens, end), xp)
            for end, rank in zip(ends, self._node, strict=True)
        ]
        nbytes = sends[group.rank].size
        receives = [xp.empty(nbytes, "uint8") for _ in range(group.size)]
        group.all_to_all(sends, receives).wait()
        own = self._node[group.rank].tokens
        return concat([from_bytes(part, shape(own), dtype, like) for part in receives], heads)

    def _heads(self, x: Any, rank: int) -> Any:
        return rows(x, self._head_axis, *heads_of(int(x.shape[self._head_axis]), self._group, rank))

    def _shape(self, tokens: int, head_dim: int) -> tuple[int, ...]:
        heads = self._few.num_q_heads
        axes = (heads, tokens) if self._call.axis == 2 else (tokens, heads)
        return self._call.carrier.batch, *axes, int(head_dim)

    def _bytes_of_rows(self, rank: Shard, q: Any) -> int:
        row = self._few.num_q_heads * self._call.carrier.batch * int(q.shape[3])
        return rank.tokens * row * (4 if self._call.carrier.dtype == "float32" else 2)
