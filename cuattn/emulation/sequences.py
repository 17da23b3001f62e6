"""The emulation of sequences of different lengths: each is a call of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..operands.problem import Problem
from ..reference.arrays import whole_counts
from ..reference.varlen import Sequence, sequences
from ..specs.coding import Name

__all__ = ["emulate_sequences"]

# Takes Q, K and V [1, head, token, head_dim], options that are arrays, and which sequence it is.
Attend: TypeAlias = Callable[[Mapping[Name, Any], Mapping[str, Any], int], tuple[Any, Any]]


def emulate_sequences(
    values: Mapping[Name, NDArray[Any]],
    options: Mapping[str, NDArray[Any]],
    problem: Problem,
    o: NDArray[np.float64],
    attend: Attend,
) -> NDArray[np.float64]:
    """Attend each sequence, and return the log-sum-exp [batch, head, token].

    Parameters
    ----------
    values : mapping of {"q", "k", "v"} to ndarray
        [batch, head, token, head_dim], of a batch of 1 if sequences lie end to end.
    options : mapping of str to ndarray
        Those of the call, by their names.
    problem : Problem
        Which has lengths.
    o : ndarray of float64
        As `values`. Gets what is made; other tokens stay.
    attend : callable

    Raises
    ------
    ArgumentError
        If lengths make no sense, which a GPU would not say.
    """
    lse = np.full(o.shape[:3], -np.inf)
    sinks = options.get("sinks")
    for slot, each in _sequences(options, problem):
        rows, keys = each.shape
        here = slice(slot, slot + 1)
        if not rows:
            continue
        if not keys:
            o[here, :, each.rows] = 0
            lse[here, :, each.rows] = -np.inf if sinks is None else sinks[:, None]
            continue
        of_name = {"q": each.rows, "k": each.keys, "v": each.keys}
        part: dict[Name, Any] = {name: x[here, :, of_name[name]] for name, x in values.items()}
        o[here, :, each.rows], lse[here, :, each.rows] = attend(
            part, _options_of(each, options, problem), each.number
        )
    return lse


def _sequences(
    options: Mapping[str, NDArray[Any]], problem: Problem
) -> Iterator[tuple[int, Sequence]]:
    """Yield the batch of `values` that each sequence is in, and where it is there."""
    used = options.get("seqused_k")
    totals = problem.q.tokens, problem.k.tokens
    if problem.is_packed:
        bounds = options["cu_seqlens_q"], options["cu_seqlens_k"]
        most = problem.seqlen_q, problem.seqlen_kv
        for each in sequences(*bounds, totals, max_seqlens=most, seqused_k=used):
            yield 0, each
        return
    for b, count in enumerate(whole_counts("seqused_k", used, problem.batch, totals[1])):
        yield b, Sequence(b, slice(0, totals[0]), slice(0, int(count)))


def _options_of(
    each: Sequence, options: Mapping[str, NDArray[Any]], problem: Problem
) -> dict[str, NDArray[Any]]:
    """Return sinks, slopes and the mask as one sequence has them."""
    found = {name: options[name] for name in ("sinks", "alibi_slopes") if name in options}
    if "alibi_slopes" in found and found["alibi_slopes"].shape[:-1] == (problem.batch,):
        found["alibi_slopes"] = found["alibi_slopes"][each.number]
    if "attn_mask" in options:
        shape = (*problem.q.shape[:3], problem.k.tokens)
        mask = np.broadcast_to(options["attn_mask"], shape)
        found["attn_mask"] = mask[each.number : each.number + 1, ..., each.keys]
    return found
