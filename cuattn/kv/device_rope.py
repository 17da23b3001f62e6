"""Rotary embedding on the GPU: where tables and positions lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import Caller, device_of
from ..arrays.view import CPU, View, as_cupy, as_float32, view_cupy
from ..compile.launch import Buffers
from ..errors import ArgumentError, UnsupportedError
from ..operands.operand import compact_strides
from .device import DeviceMemory
from .packed_tokens import PackedTokens
from .rope import GivenRope, RopeSizes, check_reach, next_positions, places

__all__ = [
    "ROPE",
    "Tables",
    "packed_positions",
    "positions_on_device",
    "rope_values",
    "tables_on_device",
]

# The addresses of a call that turns what it is given, null of others.
ROPE = ("cos", "sin", "positions")


class Tables(NamedTuple):
    """Tables as kernels read them."""

    sizes: RopeSizes
    cos: View
    sin: View


def tables_on_device(memory: DeviceMemory, caller: Caller, given: GivenRope, dtype: str) -> Tables:
    """Check the tables, and copy what is no contiguous float32.

    Parameters
    ----------
    dtype : str
        Of what is turned.

    Raises
    ------
    ArgumentError
        If they are anywhere else, or as `GivenRope.sizes`.
    """
    cos, sin = (
        memory.look(caller, x, name)
        for name, x in (("rope.cos", given.rope.cos), ("rope.sin", given.rope.sin))
    )
    head_dim = memory.geometry.kv_format.head_dim
    sizes = given.sizes(cos.signature, sin.signature, dtype, head_dim)
    return Tables(sizes, *(_in_float32(x, sizes) for x in (cos, sin)))


def positions_on_device(
    memory: DeviceMemory,
    caller: Caller,
    given: GivenRope,
    sizes: RopeSizes,
    tokens: int,
    counts: View | NDArray[np.int64] | None,
    *,
    behind: int = 0,
    is_shifted: bool = False,
    packed: PackedTokens | None = None,
) -> View | None:
    """Return the positions of rows as kernels read them, None if they are places in sequences.

    Parameters
    ----------
    tokens : int
        Rows of a sequence, or of all that lie end to end.
    counts : ndarray of int64 [batch], optional
        How many of them there are, by default all; on the GPU nobody knows.
    behind : int
        How many of the last tokens of the cache they stand beside.
    is_shifted : bool
        Whether sequences have lost tokens, or are about to.
    packed : PackedTokens, optional
        How rows lie end to end.

    Raises
    ------
    ArgumentError, UnsupportedError
        As `KVCache.append`.
    """
    batch, state = memory.geometry.batch, memory.host_state
    is_known = state.is_known and not isinstance(counts, View) and not memory.is_captured()
    of_host = None if isinstance(counts, View) else counts
    fresh = np.full(batch, tokens) if of_host is None else of_host
    x = given.positions
    if x is not None:
        if hasattr(x, "__dlpack_device__") and device_of(x, "positions")[0] != CPU:
            shape = (batch, tokens) if packed is None else (tokens,)
            return _looked_at(memory, caller, x, shape)
        counted = np.arange(tokens) < fresh[:, None] if packed is None else packed.counted
        there = given.checked_positions(sizes, counted)
        return view_cupy(memory.sent(there.astype(np.int32)))
    if is_known:
        first = next_positions(state) - behind
        check_reach(sizes, int((first + fresh)[fresh > 0].max(initial=0)))
        if not is_shifted:
            return None
        at = places(first, tokens) if packed is None else packed.places(first)
        return view_cupy(memory.sent(at.astype(np.int32)))
    _check_unshifted(is_shifted=is_shifted)
    check_reach(sizes, memory.geometry.capacity)
    return None


def packed_positions(
    memory: DeviceMemory,
    caller: Caller,
    given: GivenRope,
    sizes: RopeSizes,
    tokens: int,
) -> tuple[View | None, View | None]:
    """Return the positions of queries that lie end to end, or else those behind their sequences.

    Both are None if positions are places in sequences.

    Parameters
    ----------
    tokens : int
        Rows of all sequences.

    Raises
    ------
    ArgumentError, UnsupportedError
        As `KVCache.attend`.
    """
    x, state = given.positions, memory.host_state
    if x is not None:
        if hasattr(x, "__dlpack_device__") and device_of(x, "positions")[0] != CPU:
            return _looked_at(memory, caller, x, (tokens,)), None
        there = given.checked_positions(sizes, np.ones(tokens, np.bool_))
        return view_cupy(memory.sent(there.astype(np.int32))), None
    if state.is_known and not memory.is_captured():
        ends = next_positions(state)
        check_reach(sizes, int(ends.max()))
        if state.evicted is None:
            return None, None
        return None, view_cupy(memory.sent(ends.astype(np.int32)))
    _check_unshifted(is_shifted=state.evicted is not None)
    check_reach(sizes, memory.geometry.capacity)
    return None, None


def rope_values(sizes: RopeSizes | None, buffers: Buffers) -> Mapping[str, Any] | None:
    """Return the members of RopeParams in kernels_cu/kv/kv_params.cuh, None if nothing turns."""
    if sizes is None:
        return None
    addresses = {name: buffers[name] for name in ROPE}
    return addresses | sizes._asdict() | {"interleaved": int(sizes.interleaved)}


def _check_unshifted(*, is_shifted: bool) -> None:
    """Check that places are positions where the host does not know them."""
    if is_shifted:
        text = "rope where tokens are evicted and only the GPU knows the lengths"
        raise UnsupportedError(f"{text}: give positions")


def _in_float32(x: View, sizes: RopeSizes) -> View:
    if x.dtype == "float32" and x.strides == (sizes.pairs, 1) and not x.ptr % 4:
        return x
    return view_cupy(as_float32(x))


def _looked_at(memory: DeviceMemory, caller: Caller, x: Any, shape: tuple[int, ...]) -> View:
    seen = memory.look(caller, x, "positions")
    if seen.shape != shape or seen.dtype not in ("int32", "int64"):
        raise ArgumentError("positions", x, f"int32 or int64 {list(shape)}")
    if seen.dtype == "int32" and seen.strides == compact_strides(shape) and not seen.ptr % 4:
        return seen
    return view_cupy(as_cupy(seen).astype(np.int32, order="C"))
