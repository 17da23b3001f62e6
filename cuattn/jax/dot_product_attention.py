"""`dot_product_attention`, for `jax.nn`'s."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..arrays.view import CPU, Array
from ..common.public import public
from ..common.sizes import is_whole_number
from ..errors import ArgumentError, UnsupportedError
from ..operands.lengths import LengthArrays
from ..operands.operand import compact_strides
from ..operands.options import Options, check_flag, checked_scale
from ..operands.score_arrays import ScoreArrays
from ..operands.scores import ALL_KEYS, checked_window
from ..plan.auto_problem import problem_on_host
from ..scheme import Scheme
from .in_graph import Static, in_graph
from .rules import Rules

__all__ = ["dot_product_attention"]

_IMPLEMENTATIONS = (None, "ffi", "callback")


@public
def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
    scheme: str | Scheme = "int8",
) -> Any:
    """Compute attention as `jax.nn.dot_product_attention` does, with quantized operands.

    It may be called in functions under `jax.jit`, `jax.vmap` and `jax.shard_map` and in
    `jax.lax.scan`, and outside of them. Its result has the bits of `cuattn.attention`.

    Parameters
    ----------
    query : array [batch, T, N, H] or [T, N, H]
        float16, bfloat16 or float32; H is a multiple of 8 up to 512.
    key, value : array [batch, S, K, H] or [S, K, H]
        Of the type of `query`; N is a multiple of K. H of `value` may be another one.
    bias : array of floats, optional
        Added to the logits; it broadcasts to [batch, N, T, S].
    mask : array of bool, optional
        True is seen; it broadcasts to [batch, N, T, S].
    scale : float, optional
        Of the logits, ``1/sqrt(H)`` by default; a number that is known when JAX traces.
    is_causal : bool
        Row i sees the keys up to key i, also where T and S differ, as JAX has it.
    query_seq_lengths, key_value_seq_lengths : array of int32 [batch], optional
        Rows behind are 0, and keys behind are not seen.
    local_window_size : int or (int, int), optional
        How many keys before and behind key i row i sees.
    implementation : {None, "ffi", "callback"}
        XLA's foreign function interface, without copies, which None is too; or
        `jax.pure_callback`, through host memory.
    return_residual : bool
        Return the log-sum-exp of the logits too.
    scheme : str or Scheme
        As for `cuattn.attention`.

    Returns
    -------
    o : jax.Array with the shape and type of `query`
        A row that sees no key is 0; of `jax.nn`'s function it is the mean of all values.
    lse : jax.Array of float32 [batch, T, N] or [T, N]
        Only with `return_residual`; -inf of a row that sees no key.

    Raises
    ------
    ArgumentError
        If an argument is wrong, when JAX traces.
    UnsupportedError
        If JAX differentiates: there are no gradients. `jax.lax.stop_gradient` of the operands is
        what they are without.
    jax.errors.JaxRuntimeError
        If something else fails, when the function runs.
    """
    if implementation not in _IMPLEMENTATIONS:
        expected = f"one of {_IMPLEMENTATIONS}: it is cuattn's that is chosen here"
        raise ArgumentError("implementation", implementation, expected)
    check_flag("is_causal", is_causal)
    check_flag("return_residual", return_residual)
    given = {"query": jnp.asarray(query), "key": jnp.asarray(key), "value": jnp.asarray(value)}
    rank = given["query"].ndim
    for name, x in given.items():
        if x.ndim != rank or rank not in (3, 4):
            raise ArgumentError(name, x, "of 4 axes [batch, token, head, channel], or all of 3")
    q, k, v = (x if rank == 4 else x[None] for x in given.values())
    batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    lengths = {
        "query_seq_lengths": query_seq_lengths,
        "key_value_seq_lengths": key_value_seq_lengths,
    }
    of_rows, of_keys = (_checked_lengths(x, name, batch) for name, x in lengths.items())
    rules = Rules(bool(is_causal), _window_of(local_window_size))
    rules = rules.with_masks(_four(bias, "bias"), _four(mask, "mask"), of_keys, rows, keys)
    if rules.keys is not None:
        k, v = k[:, : rules.keys], v[:, : rules.keys]
    operands = {"q": q, "k": k, "v": v, **rules.arrays}
    static = Static(
        tuple(operands),
        scheme,
        checked_scale(scale, q.shape[3]),
        rules.is_causal,
        rules.window_size,
        bool(return_residual),
    )
    _check(static, operands)
    call = jax.custom_jvp(partial(_call, static, implementation == "callback"))
    call.defjvp(_refuse)
    o, *lse = call(*operands.values())
    if of_rows is not None:
        there = jnp.arange(rows) < of_rows[:, None]
        o = jnp.where(there[:, :, None, None], o, 0)
        lse = [jnp.where(there[:, None], x, -jnp.inf) for x in lse]
    o = o if rank == 4 else o[0]
    if not return_residual:
        return o
    residual = lse[0].swapaxes(1, 2)
    return o, residual if rank == 4 else residual[0]


def _call(static: Static, by_callback: bool, *operands: Any) -> Any:
    return in_graph(static, operands, by_callback)


def _refuse(primals: Any, tangents: Any) -> NoReturn:
    raise UnsupportedError(
        "cuattn has no gradients: give dot_product_attention jax.lax.stop_gradient of its operands "
        "if none are wanted through it, or use jax.nn's"
    )


def _check(static: Static, operands: dict[str, Any]) -> None:
    """Check a call as `cuattn.attention` does, before XLA has it."""
    arrays = {
        name: Array(x.shape, compact_strides(x.shape), str(x.dtype), (CPU, 0))
        for name, x in operands.items()
    }
    q, k, v = (arrays.pop(name) for name in ("q", "k", "v"))
    options = Options(
        static.scheme,
        static.scale,
        static.is_causal,
        static.return_lse,
        "NHD",
        static.window_size,
    )
    problem_on_host(q, k, v, options, ScoreArrays.of(arrays), LengthArrays.of(arrays))


def _checked_lengths(x: Any, name: str, batch: int) -> Any:
    if x is None:
        return None
    found = jnp.asarray(x)
    if found.shape != (batch,) or found.dtype != jnp.int32:
        raise ArgumentError(name, found, f"int32 [{batch}]")
    return found


def _four(x: Any, name: str) -> Any:
    """Return a mask with four axes."""
    if x is None:
        return None
    found = jnp.asarray(x)
    if (name == "mask") != (found.dtype == jnp.bool_):
        raise ArgumentError(name, found, "of bool" if name == "mask" else "of floats")
    if found.ndim > 4:
        raise ArgumentError(name, found, "of at most 4 axes [batch, N, T, S]")
    return found.reshape((1,) * (4 - found.ndim) + found.shape)


def _window_of(size: Any) -> tuple[int, int]:
    if size is None:
        return ALL_KEYS
    pair = (size, size) if is_whole_number(size) else size
    try:
        left, right = pair
    except (TypeError, ValueError):
        raise ArgumentError("local_window_size", size, "a number or two") from None
    if min(np.asarray(pair)) < 0:
        raise ArgumentError("local_window_size", size, "of numbers from 0 on")
    return checked_window((left, right))
