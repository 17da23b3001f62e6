"""`DistributedKVCache`: a cache whose tokens are spread over ranks, for decoding."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.caller import Caller, device_of, on_device
from ..arrays.view import CUDA, cupy_module
from ..common.public import check_keywords, class_naming_keywords, public
from ..errors import ArgumentError
from ..kv.attend import attend_on_device
from ..kv.cache import KVCache
from ..kv.device import DeviceMemory
from ..kv.query import QueryOptions
from ..merging import merge_states
from .agreement import agree
from .arrays import concat, from_bytes, rows, zeros
from .group import Group
from .partials import exchanged_heads, gathered_partials, gathered_queries
from .placement import token_axis

__all__ = ["DistributedKVCache"]


@class_naming_keywords
class DistributedKVCache:
    """Quantized keys and values of sequences, of which each rank holds a part of the tokens.

    Token t is on rank ``(t // interleave) % P``, in a `cuattn.KVCache` of its own. All ranks make
    the same calls, with the same tokens.

    Parameters
    ----------
    group : Group
    batch, num_kv_heads, head_dim : int
        As for `cuattn.KVCache`.
    capacity : int
        Most tokens of a sequence, on all ranks together.
    interleave : int
        Tokens that follow each other on a rank.
    **options : object
        As for `cuattn.KVCache`.

    Raises
    ------
    MismatchError
        On every rank, if an argument is wrong on any or differs between two.
    NoGPUError, UnsupportedError
        As for `cuattn.KVCache`.

    Notes
    -----
    K is smoothed by an offset of each rank's own; `attend` merges by the lse of unsmoothed logits.
    Lengths are counted on the host: tokens cannot be appended inside a captured graph. `attend` can
    be captured with NCCL's groups, for one query, and replayed until the next `append`.
    """

    def __init__(
        self,
        group: Group,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        interleave: int = 16,
        **options: Any,
    ) -> None:
        cache: KVCache | None = None
        described: Any = {
            "batch": batch,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "capacity": capacity,
            "interleave": interleave,
            "options": {name: repr(value) for name, value in sorted(options.items())},
        }
        try:
            check_keywords(options, DistributedKVCache.__init__, KVCache.__init__)
            if isinstance(interleave, bool) or not isinstance(interleave, int) or interleave < 1:
                raise ArgumentError("interleave", interleave, "a number of tokens, at least 1")
            if options.get("window") is not None:
                expected = "None: a rank would not know which tokens another one has given back"
                raise ArgumentError("window", options["window"], expected)
            own = owned(capacity, interleave, group.size, group.rank)
            cache = KVCache(batch, num_kv_heads, head_dim, max(own, 1), **options)
        except ArgumentError as error:
            described = error
        agree(group, "DistributedKVCache", described, None, "always")
        assert cache is not None  # else every rank has raised
        self._group, self._cache = group, cache
        self._capacity, self._interleave = capacity, interleave
        self._lengths = np.zeros(batch, np.int64)

    @property
    def local(self) -> KVCache:
        """The part of this rank."""
        return self._cache

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence, on all ranks together: int32 [batch]."""
        return self._lengths.astype(np.int32)

    @public
    def append(
        self, k: Any, v: Any, *, counts: ArrayLike | None = None, layout: str = "HND"
    ) -> None:
        """Put tokens after those that there are, each on the rank that it belongs to.

        Parameters
        ----------
        k, v : array [batch, num_kv_heads, n, head_dim]
            Of all n tokens, on every rank: what is another rank's is not looked at.
        counts : array_like of int [batch], optional
            In host memory; as for `cuattn.KVCache.append`.
        layout : {"HND", "NHD"}

        Raises
        ------
        ArgumentError
            If an argument is wrong or a sequence lacks room; nothing has changed on this rank.
        """
        axis = token_axis(layout)
        n = int(k.shape[axis]) if len(k.shape) == 4 else 0
        batch = len(self._lengths)
        new = np.full(batch, n) if counts is None else np.asarray(counts, np.int64)
        if new.shape != (batch,) or (new < 0).any() or (new > n).any():
            raise ArgumentError("counts", counts, f"[{batch}] numbers from 0 to {n}")
        if (self._lengths + new > self._capacity).any():
            expected = f"so many that no sequence has more than {self._capacity} tokens"
            raise ArgumentError("k.shape", tuple(k.shape), expected)
        of_sequence = [
            self._own(int(first), int(count))
            for first, count in zip(self._lengths, new, strict=True)
        ]
        own = np.array([len(x) for x in of_sequence])
        if own.any():
            some = [_taken(x, of_sequence, axis) for x in (k, v)]
            self._cache.append(*some, counts=own, layout=layout)
        self._lengths = self._lengths + new

    @public
    def attend(
        self,
        q: Any,
        *,
        is_causal: bool = True,
        softcap: float = 0.0,
        sinks: Any = None,
        scale: float | None = None,
        layout: str = "HND",
        split_heads: bool = False,
        return_lse: bool = False,
    ) -> Any:
        """Attend to the tokens of all ranks.

        Parameters
        ----------
        q : array [batch, num_q_heads, n, head_dim]
            Equal on all ranks; or, with `split_heads`, of this rank's heads only: `num_q_heads / P`
            of them, in the order of the ranks.
        is_causal : bool
        softcap : float
        scale : float, optional
        layout : {"HND", "NHD"}
            All as for `cuattn.KVCache.attend`.
        sinks : array [num_q_heads], optional
            Of the library of `q`, and of all heads.
        split_heads : bool
            Gather queries before, and give each rank the results of its own heads.
        return_lse : bool
            Return the log-sum-exp too.

        Returns
        -------
        o : array with the shape and type of `q`
        lse : array of float32 [batch, heads of q, n]
            Only with `return_lse`.

        Raises
        ------
        ArgumentError
            If an argument is wrong.
        RankTimeoutError
            If a rank does not answer in time.
        """
        axis = token_axis(layout)
        kind, ordinal = device_of(q, "q")
        if kind != CUDA:
            return self._attend(
                q, axis, np, is_causal, softcap, sinks, scale, layout, split_heads, return_lse
            )
        with on_device(ordinal), Caller(q, None):
            return self._attend(
                *(q, axis, cupy_module(), is_causal, softcap, sinks, scale),
                *(layout, split_heads, return_lse),
            )

    def _attend(
        self,
        q: Any,
        axis: int,
        xp: Any,
        is_causal: bool,
        softcap: float,
        sinks: Any,
        scale: float | None,
        layout: str,
        split_heads: bool,
        return_lse: bool,
    ) -> Any:
        group, heads = self._group, 3 - axis
        if split_heads and group.size > 1:
            q = gathered_queries(group, q, heads, xp)
        n = int(q.shape[axis])
        options: dict[str, Any] = {
            "is_causal": False,
            "softcap": softcap,
            "attn_mask": self._mask(n, q, xp) if is_causal and n > 1 else None,
            "scale": scale,
            "layout": layout,
            "return_lse": True,
        }
        attend = partial(self._cache.attend, q, **options)
        if group.size == 1:
            parts = [attend()]
        elif split_heads:
            parts = exchanged_heads(group, attend(), heads, xp)
        else:
            parts = gathered_partials(group, q, heads, xp, partial(self._attend_into, q, options))
        if sinks is not None:
            if split_heads:
                each = len(sinks) // group.size
                sinks = rows(sinks, 0, group.rank * each, (group.rank + 1) * each)
            like, of_lse = parts[0]
            nothing = (
                zeros(like, tuple(like.shape)),
                zeros(of_lse, tuple(of_lse.shape)) + sinks[:, None],
            )
            parts.append(nothing)
        o, lse = parts[0]
        if len(parts) > 1:
            o, lse = merge_states([o for o, _ in parts], [lse for _, lse in parts], layout=layout)
        return (o, lse) if return_lse else o

    def _attend_into(self, q: Any, options: dict[str, Any], o: Any, lse: Any) -> Any:
        """Attend to this rank's tokens, write the lse and, if there is a place for it, o."""
        memory = self._cache._memory
        if not isinstance(memory, DeviceMemory):
            o, found = self._cache.attend(q, out=o, **options)
            lse[...] = found
            return o
        given = dict(options)
        mask = given.pop("attn_mask")
        scores: dict[Any, Any] = {} if mask is None else {"attn_mask": mask}
        query = QueryOptions(**given)
        return attend_on_device(memory, q, query, scores, o, None, out_lse=lse)[0]

    def _own(self, first: int, count: int) -> NDArray[np.intp]:
        """Return which of new tokens, of which the first is number `first`, are this rank's."""
        new: NDArray[np.intp] = np.arange(count)
        mine: NDArray[np.intp] = new[
            (first + new) // self._interleave % self._group.size == self._group.rank
        ]
        return mine

    def _mask(self, n: int, q: Any, xp: Any) -> Any:
        """Return which of this rank's last tokens the last n queries see: [batch, 1, n, m]."""
        size, rank, run = self._group.size, self._group.rank, self._interleave
        last = [owned(int(length), run, size, rank) for length in self._lengths]
        before = [owned(max(int(length) - n, 0), run, size, rank) for length in self._lengths]
        columns = max(1, *(a - b for a, b in zip(last, before, strict=True)))
        seen = np.ones((len(last), 1, n, columns), np.bool_)
        for b, (own, length) in enumerate(zip(last, self._lengths, strict=True)):
            local = np.arange(own - columns, own)
            where = local // run * run * size + rank * run + local % run
            queries = np.arange(int(length) - n, int(length))
            seen[b, 0] = where[None, :] <= queries[:, None]
        return from_bytes(xp.asarray(seen.view(np.uint8).reshape(-1)), seen.shape, "bool", q)


def owned(tokens: int, interleave: int, size: int, rank: int) -> int:
    """Return how many of the first tokens of a sequence a rank has."""
    rounds, rest = divmod(tokens, interleave * size)
    return rounds * interleave + min(max(rest - rank * interleave, 0), interleave)


def _taken(x: Any, of_sequence: list[NDArray[np.intp]], axis: int) -> Any:
    """Return the tokens of each sequence that are asked for, from its first place on."""
    most = max(map(len, of_sequence))
    if all(len(own) == most and np.array_equal(own, of_sequence[0]) for own in of_sequence):
        own = of_sequence[0]
        if most == own[-1] - own[0] + 1:
            return rows(x, axis, int(own[0]), int(own[-1]) + 1)
        return x[(slice(None),) * axis + (own.tolist(),)]
    parts = []
    for b, own in enumerate(of_sequence):
        fill = [*own.tolist(), *[0] * (most - len(own))]
        parts.append(x[b : b + 1][(slice(None),) * axis + (fill,)])
    return concat(parts, 0)
