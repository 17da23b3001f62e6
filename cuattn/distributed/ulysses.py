"""`ulysses_attention` and `usp_attention`: tokens of some heads for some tokens of all heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..attention import attention
from ..common.public import public
from ..errors import ArgumentError, CuattnError, MismatchError
from ..operands.scores import ALL_KEYS
from ..scheme import Scheme
from .agreement import Check, agree
from .arrays import rows
from .call import Call, tokens_of
from .group import Group
from .head_exchange import HeadExchange, Shard, heads_of
from .parcel import Wire
from .placement import Placement, Run, joined, token_axis
from .ring import go_round
from .states import States
from .virtual import single

__all__ = ["ulysses_attention", "usp_attention"]


@public
def ulysses_attention(
    q: Any,
    k: Any,
    v: Any,
    group: Group,
    *,
    is_causal: bool = False,
    scheme: str | Scheme = "int8",
    wire: Wire = None,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    sinks: Any = None,
    scale: float | None = None,
    layout: str = "HND",
    return_lse: bool = False,
    check: Check = "always",
    timeout: float | None = None,
) -> Any:
    """Attend as `ring_attention` does: each rank to all tokens, for its part of the heads.

    K and V are quantized before the exchange; Q, and the result on its way back, travel in their
    own type. Tokens are placed contiguously: every rank has all of them for a while, so that any
    mask leaves all with the same work.

    Parameters
    ----------
    q, k, v, group
        As for `ring_attention` with placement "contiguous". The number of ranks divides
        `num_kv_heads`.
    is_causal, scheme, wire, window_size, softcap, sinks, scale, layout, return_lse, check, timeout
        As for `ring_attention`.

    Returns
    -------
    o, lse
        As those of `ring_attention`; not the same bits, for parts are merged in the order of ranks.

    Raises
    ------
    MismatchError, RankTimeoutError, ArgumentError
        As for `ring_attention`.

    Notes
    -----
    DeepSpeed-Ulysses, arXiv 2309.14509.
    """
    options = {
        "is_causal": is_causal,
        "window_size": window_size,
        "softcap": softcap,
        "sinks": sinks,
        "scale": scale,
        "scheme": scheme,
        "layout": layout,
        "return_lse": return_lse,
    }
    if group.size == 1 and wire != "int4":
        return attention(q, k, v, **options)
    alone = single(group.timeout)
    options |= {"wire": wire, "placement": "contiguous"}
    return _attend("ulysses_attention", (q, k, v), group, alone, options, sinks, check, timeout)


@public
def usp_attention(
    q: Any,
    k: Any,
    v: Any,
    inner: Group,
    outer: Group,
    *,
    is_causal: bool = False,
    placement: Placement = "zigzag",
    scheme: str | Scheme = "int8",
    wire: Wire = None,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    sinks: Any = None,
    scale: float | None = None,
    layout: str = "HND",
    return_lse: bool = False,
    check: Check = "always",
    timeout: float | None = None,
) -> Any:
    """Attend as `ring_attention` does: Ulysses inside a node, rings between nodes.

    The ranks of `inner` exchange tokens for heads; then each goes round with the ranks of `outer`
    that have the same heads, codes as they have come.

    Parameters
    ----------
    q, k, v
        As for `ring_attention`. What the ranks of a node have together is placed as `placement`
        says among nodes, and contiguously inside the node: shard by ``outer``, then by ``inner``.
    inner, outer : Group
        The node's ranks, and those with this rank's number in each node. The number of ranks of
        `inner` divides `num_kv_heads`.
    is_causal, placement, scheme, wire, window_size, softcap, sinks, scale, layout, return_lse
        As for `ring_attention`.
    check, timeout
        As for `ring_attention`.

    Returns
    -------
    o, lse
        As those of `ring_attention`.

    Raises
    ------
    MismatchError, RankTimeoutError, ArgumentError
        As for `ring_attention`.

    Notes
    -----
    USP, arXiv 2405.07719.
    """
    options = {
        "is_causal": is_causal,
        "window_size": window_size,
        "softcap": softcap,
        "sinks": sinks,
        "scale": scale,
        "scheme": scheme,
        "layout": layout,
        "return_lse": return_lse,
        "wire": wire,
        "placement": placement,
    }
    return _attend("usp_attention", (q, k, v), inner, outer, options, sinks, check, timeout)


def _attend(
    name: str,
    given: tuple[Any, Any, Any],
    inner: Group,
    outer: Group,
    options: dict[str, Any],
    sinks: Any,
    check: Check,
    timeout: float | None,
) -> Any:
    q, k, v = given
    layout, return_lse = options["layout"], options["return_lse"]
    call, shards = _agreed(name, given, inner, outer, options, check)
    with call.on_device(), call.on_stream(q):
        exchange = HeadExchange(call, shards, inner, outer.rank)
        own_q, parcel = exchange.to_heads(q, k, v)
        states = States(own_q, int(v.shape[3]), layout)
        few = call.with_heads(inner.size)
        pieces = [[piece for rank in node for piece in rank.pieces] for node in shards]
        go_round(few, states, own_q, [_rows(node) for node in shards], pieces, parcel, outer)
        own = None if sinks is None else rows(sinks, 0, *heads_of(len(sinks), inner))
        o, lse = exchange.to_tokens(*states.merged(own), q, return_lse)
        if timeout is not None:
            inner.synchronize(timeout)
            outer.synchronize(timeout)
    return (o, lse) if return_lse else o


def _rows(node: Sequence[Shard]) -> tuple[Run, ...]:
    """Return the rows of a node, those of its ranks one after the other."""
    return joined([run for rank in node for run in rank.queries])


def _agreed(
    name: str,
    given: tuple[Any, Any, Any],
    inner: Group,
    outer: Group,
    options: dict[str, Any],
    check: Check,
) -> tuple[Call, list[list[Shard]]]:
    """Check a call with all ranks, and return it with what each has, by node and rank."""
    call: Call | None = None
    lengths = [0, 0]
    try:
        call = Call.of(*given, **options)
        heads = call.carrier.heads
        if heads % inner.size:
            expected = f"a multiple of the {inner.size} ranks that share them"
            raise ArgumentError("num_kv_heads", heads, expected)
        said: Any = call.described() | {"ranks": [inner.size, outer.size]}
        axis = token_axis(options["layout"])
        lengths = [int(x.shape[axis]) for x in given[:2]]
    except CuattnError as error:
        said = error
    # What is wrong in one node is known there first, and must not leave others waiting.
    try:
        node: Any = agree(inner, name, said, lengths, check)
    except MismatchError as error:
        said, node = error, []
    every = agree(outer, name, said, node, check)
    assert call is not None  # else every rank has raised
    of_q, of_k = ([[own[i] for own in node] for node in every] for i in (0, 1))
    total = sum(map(sum, of_k)), sum(map(sum, of_q))
    keys = tokens_of([sum(node) for node in of_k], call.placement, name="k")
    queries = tokens_of(
        [sum(node) for node in of_q], call.placement, name="q", shift=total[0] - total[1]
    )
    return call, [
        [
            Shard(rank_q, rank_k, call)
            for rank_q, rank_k in zip(_divided(q, n_q), _divided(k, n_k), strict=True)
        ]
        for q, k, n_q, n_k in zip(queries, keys, of_q, of_k, strict=True)
    ]


def _divided(runs: Sequence[Run], lengths: Sequence[int]) -> list[tuple[Run, ...]]:
    """Return runs of so many tokens each, one after the other."""
    found = []
    left = list(runs)
    for length in lengths:
        taken: list[Run] = []
        while length and left:
            run = left.pop(0)
            count = min(run.tokens, length)
            taken.append(run._replace(tokens=count))
            length -= count
            if count < run.tokens:
                rest = run._replace(start=run.start + run.step * count, tokens=run.tokens - count)
                left.insert(0, rest)
        found.append(joined(taken) or (Run(0, 1, 0),))
    return found
