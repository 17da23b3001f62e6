"""Partial results of a decoding step: those of all ranks on each, or of a rank's own heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..common.sizes import round_up
from .arrays import concat, copy_bytes, dtype_of, from_bytes, is_writable, raw_bytes, rows
from .group import Group

__all__ = ["Partial", "exchanged_heads", "gathered_partials", "gathered_queries"]

# o and lse of some heads, of what a rank has of the tokens.
Partial = tuple[Any, Any]

# Rows of o have a multiple of 16 bytes, which kernels load at once; so do places of ranks.
_ALIGNMENT = 256


def gathered_queries(group: Group, q: Any, heads: int, xp: Any) -> Any:
    """Return the queries of all heads, of which each rank has some.

    Parameters
    ----------
    q : array
    heads : int
        Axis of the heads.
    xp : module
        numpy or cupy.
    """
    own = raw_bytes(q, xp)
    every = xp.empty(group.size * own.size, "uint8")
    places = [every[i * own.size : (i + 1) * own.size] for i in range(group.size)]
    group.all_gather_equal(own, every).wait()
    return concat([from_bytes(x, tuple(q.shape), dtype_of(q), q) for x in places], heads)


def gathered_partials(
    group: Group, q: Any, heads: int, xp: Any, attend: Callable[[Any, Any], Any]
) -> list[Partial]:
    """Attend to this rank's tokens, and return the partial results of all ranks.

    Parameters
    ----------
    q : array
        Of all heads; o is like it.
    heads : int
        Axis of the heads.
    xp : module
        numpy or cupy.
    attend : callable
        Given where o is to be written, or None, and where the lse is, it returns o.
    """
    of_lse = int(q.shape[0]), int(q.shape[heads]), int(q.shape[3 - heads])
    of_o = tuple(map(int, q.shape))
    border = math.prod(of_o) * (4 if dtype_of(q) == "float32" else 2)
    end = border + 4 * math.prod(of_lse)
    each = round_up(end, _ALIGNMENT)
    every = xp.empty(group.size * each, "uint8")
    places = [every[i * each : (i + 1) * each] for i in range(group.size)]
    parts = [
        (
            from_bytes(x[:border], of_o, dtype_of(q), q),
            from_bytes(x[border:end], of_lse, "float32", q),
        )
        for x in places
    ]
    own = places[group.rank]
    to_o, to_lse = parts[group.rank]
    if border and is_writable(q):
        attend(to_o, to_lse)
    else:
        copy_bytes(raw_bytes(attend(None, to_lse), xp), own[:border])
    group.all_gather_equal(own, every).wait()
    return parts


def exchanged_heads(group: Group, part: Partial, heads: int, xp: Any) -> list[Partial]:
    """Give each rank the partial results of its heads, and return those of this rank's.

    Parameters
    ----------
    part : tuple
        o and lse of all heads.
    heads : int
        Axis of the heads of o.
    xp : module
        numpy or cupy.
    """
    o, lse = part
    size = group.size
    each = int(o.shape[heads]) // size
    sends = []
    for rank in range(size):
        some = rows(o, heads, rank * each, (rank + 1) * each)
        of_some = rows(lse, 1, rank * each, (rank + 1) * each)
        sends.append(xp.concatenate([raw_bytes(some, xp), raw_bytes(of_some, xp)]))
    receives = [xp.empty(sends[0].size, "uint8") for _ in range(size)]
    group.all_to_all(sends, receives).wait()
    of_o, of_lse = list(o.shape), list(lse.shape)
    of_o[heads] = of_lse[1] = each
    border = sends[0].size - 4 * math.prod(map(int, of_lse))
    return [
        (
            from_bytes(x[:border], tuple(of_o), dtype_of(o), o),
            from_bytes(x[border:], tuple(of_lse), "float32", o),
        )
        for x in receives
    ]
