"""Which rank has which tokens: `shard`, `unshard` and `positions`, and the same as runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ..common.public import naming_keywords
from ..errors import ArgumentError
from .arrays import concat, rows

__all__ = [
    "PLACEMENTS",
    "Placement",
    "Run",
    "check_placement",
    "joined",
    "positions",
    "runs_of",
    "shard",
    "shard_lengths",
    "unshard",
]

Placement: TypeAlias = Literal["zigzag", "contiguous", "striped"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


class Run(NamedTuple):
    """Tokens at equal distances: number i is at position ``start + step * i``."""

    start: int
    step: int
    tokens: int


@naming_keywords
def positions(
    total: int, size: int, rank: int, placement: Placement = "zigzag"
) -> NDArray[np.intp]:
    """Return where the tokens of a rank are in the sequence, in the order in which it has them.

    They are what rotary embeddings need, and index the tokens of a shard: ``x[:, :, positions]``.

    Parameters
    ----------
    total : int
        Tokens of the sequence. It need not be a multiple of anything: chunks differ by at most one
        token, the longer ones first, and with fewer tokens than chunks some are empty.
    size, rank : int
        Of the group.
    placement : {"zigzag", "contiguous", "striped"}
        "zigzag": of 2P chunks rank r has number r and number 2P-1-r, so that all have as much work
        under a causal mask. "contiguous": of P chunks it has number r. "striped": it has every P-th
        token from number r on.

    Returns
    -------
    ndarray of int [tokens of the rank]

    Raises
    ------
    ArgumentError
        For another placement, or a rank that there is not.
    """
    parts = [np.arange(x.tokens) * x.step + x.start for x in runs_of(total, size, rank, placement)]
    return np.concatenate([np.zeros(0, np.intp), *parts]).astype(np.intp)


@naming_keywords
def shard(
    x: Any, size: int, rank: int, placement: Placement = "zigzag", *, layout: str = "HND"
) -> Any:
    """Return the tokens of a rank, of an array [batch, head, token, ...] of all of them.

    Parameters
    ----------
    x : array
        Of any library; with layout "NHD" [batch, token, head, ...].
    size, rank, placement
        As for `positions`.
    layout : {"HND", "NHD"}

    Returns
    -------
    array of the same library
        A view of `x` where the rank has one run of tokens, else a copy.

    Raises
    ------
    ArgumentError
        As for `positions`.
    """
    axis = token_axis(layout)
    parts = [
        rows(x, axis, run.start, run.start + run.step * run.tokens, step=run.step)
        for run in runs_of(int(x.shape[axis]), size, rank, placement)
    ]
    return parts[0] if len(parts) == 1 else concat(parts, axis)


@naming_keywords
def unshard(shards: Sequence[Any], placement: Placement = "zigzag", *, layout: str = "HND") -> Any:
    """Return an array of all tokens from those of all ranks, in the order of the ranks.

    Parameters
    ----------
    shards : sequence of array [batch, head, token, ...]
        Of any library but on one device; what `shard` returns of each rank.
    placement, layout
        As for `shard`.

    Raises
    ------
    ArgumentError
        If the shards are not as long as those of this placement.
    """
    axis, size = token_axis(layout), len(shards)
    lengths = [int(x.shape[axis]) for x in shards]
    total = sum(lengths)
    if lengths != shard_lengths(total, size, placement):
        expected = f"of {shard_lengths(total, size, placement)} tokens, those of {placement!r}"
        raise ArgumentError("shards", f"arrays of {lengths} tokens", expected)
    where = np.concatenate([positions(total, size, rank, placement) for rank in range(size)])
    whole = concat(list(shards), axis)
    order = np.argsort(where)
    return whole[(slice(None),) * axis + (order.tolist() if total else slice(None),)]


def shard_lengths(total: int, size: int, placement: Placement) -> list[int]:
    """Return how many tokens each rank has."""
    return [
        sum(run.tokens for run in runs_of(total, size, rank, placement)) for rank in range(size)
    ]


def runs_of(total: int, size: int, rank: int, placement: Placement) -> tuple[Run, ...]:
    """Return the tokens of a rank as runs; see `positions`.

    Raises
    ------
    ArgumentError
        As `positions`.
    """
    check_placement(placement)
    if not 0 <= rank < size:
        raise ArgumentError("rank", rank, f"from 0 to {size - 1}, in a group of {size}")
    if placement == "striped":
        return (Run(rank, size, max(0, -(-(total - rank) // size))),)
    if placement == "contiguous":
        return (_chunk(total, size, rank),)
    return joined((_chunk(total, 2 * size, rank), _chunk(total, 2 * size, 2 * size - 1 - rank)))


def joined(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return runs of which none is empty and none begins where the one before it ends.

    At least one is left.
    """
    found: list[Run] = []
    for run in runs:
        if found and run.tokens == 0:
            continue
        last = found[-1] if found else None
        if last is not None and last.tokens == 0:
            found[-1] = run
        elif last is not None and (last.step, last.start + last.step * last.tokens) == (
            run.step,
            run.start,
        ):
            found[-1] = last._replace(tokens=last.tokens + run.tokens)
        else:
            found.append(run)
    return tuple(found)


def check_placement(placement: object) -> None:
    """Check that there is such a placement.

    Raises
    ------
    ArgumentError
        If there is not.
    """
    if placement not in PLACEMENTS:
        raise ArgumentError("placement", placement, f"one of {PLACEMENTS}")


def token_axis(layout: str) -> int:
    """Return which axis tokens are on.

    Raises
    ------
    ArgumentError
        For another layout than "HND" and "NHD".
    """
    if layout not in ("HND", "NHD"):
        raise ArgumentError("layout", layout, "'HND' or 'NHD'")
    return 2 if layout == "HND" else 1


def _chunk(total: int, chunks: int, n: int) -> Run:
    least, longer = divmod(total, chunks)
    return Run(n * least + min(n, longer), 1, least + (n < longer))
