"""The arrays of a call on a KV cache, checked against it."""

from __future__ import annotations

from typing import NamedTuple

from ..arrays.view import Array
from ..errors import ArgumentError
from ..operands.operand import Operand, in_order, operand_of
from ..operands.problem import Options, Problem
from ..presets import resolve
from .geometry import KVGeometry

__all__ = ["QueryOptions", "query_problem", "token_operands"]

# Of its operands and options all that a cache's calls have, too.
_SCHEME = resolve("int8")


class QueryOptions(NamedTuple):
    """The arguments of `KVCache.attend` that are not arrays, as the caller gave them."""

    scale: float | None
    is_causal: bool
    return_lse: bool
    layout: str


def token_operands(
    geometry: KVGeometry, k: Array, v: Array, layout: str
) -> tuple[Operand, Operand]:
    """Check tokens that are to be appended.

    Raises
    ------
    ArgumentError
        For shapes, types and devices that are not those of the cache or of each other.
    """
    operands = (operand_of("k", k, _SCHEME, layout), operand_of("v", v, _SCHEME, layout))
    tokens = operands[0].tokens
    for name, x, operand in zip("kv", (k, v), operands, strict=True):
        wanted = (geometry.batch, geometry.num_kv_heads, tokens, geometry.kv_format.head_dim)
        if operand.shape != wanted:
            expected = f"{in_order(wanted, layout)}, as the cache has it"
            raise ArgumentError(f"{name}.shape", x.shape, expected)
    for what in ("dtype", "device"):
        if getattr(v, what) != getattr(k, what):
            raise ArgumentError(f"v.{what}", getattr(v, what), f"{getattr(k, what)}, as k has it")
    return operands


def query_problem(geometry: KVGeometry, q: Array, options: QueryOptions) -> Problem:
    """Check a query and its options: a problem whose K and V have no tokens, which nobody knows.

    Raises
    ------
    ArgumentError
        For a query that does not fit the cache, or options that make no sense.
    """
    operand = operand_of("q", q, _SCHEME, options.layout)
    batch, heads, head_dim = geometry.batch, geometry.num_kv_heads, geometry.kv_format.head_dim
    if (operand.shape[0], operand.shape[3]) != (batch, head_dim):
        expected = f"of batch {batch} and head_dim {head_dim}, as the cache has it"
        raise ArgumentError("q.shape", q.shape, expected)
    cached = in_order((batch, heads, 0, head_dim), options.layout)
    stand_in = Array(cached, (0, 0, 0, 1), q.dtype, q.device)
    return Problem.of(q, stand_in, stand_in, Options(_SCHEME, *options))
