"""Appending tokens to a KV cache on the GPU: what is checked, launched and noted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import Caller, device_of
from ..arrays.device import current_device
from ..arrays.view import CPU, Array, View, as_cupy, view_cupy
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..errors import ArgumentError
from ..operands.operand import Operand, in_order, operand_of
from ..reference.arrays import whole_counts
from .device import SCHEME, STORE, DeviceMemory, direct, store_values
from .device_rope import ROPE, positions_on_device, rope_values, tables_on_device
from .eviction import rolled
from .geometry import KVGeometry
from .moves import evict
from .plans import Plan, appended, unplanned
from .rope import GivenRope, RopeSizes
from .spec import AppendSpec, OffsetSpec

__all__ = [
    "GIVEN",
    "AppendCall",
    "append_on_device",
    "counts_on_device",
    "fresh_counts",
    "prepare_append",
    "store",
    "token_operands",
]

# The addresses of a call, in this order. Null is "counts" if all tokens of all sequences are
# appended.
GIVEN = (*STORE, "limits", "fixed", "arrivals", "refused", "k", "v", "counts", *ROPE)


@dataclass(frozen=True, eq=False)
class AppendCall:
    """What all calls on arrays of the same kinds have in common.

    Attributes
    ----------
    tokens : int
        Of each sequence in the arrays.
    launches : Chain
        Of the addresses `GIVEN`, without a workspace. Empty if there are no tokens.
    """

    tokens: int
    launches: Chain


def append_on_device(
    memory: DeviceMemory,
    k: Any,
    v: Any,
    counts: Any,
    layout: str,
    stream: Any,
    rope: GivenRope | None = None,
) -> None:
    """Do what `KVCache.append` says, of arrays on the GPU."""
    memory.check_device(k, "k", device_of(k, "k"))
    with memory.on_device():
        caller = Caller(k, stream)
        k_view, v_view = memory.look(caller, k, "k"), memory.look(caller, v, "v")
        with caller:
            k_view, v_view = direct(k_view), direct(v_view)
            tokens = k_view.signature, v_view.signature
            tables = sizes = positions = None
            if rope is not None:
                tables = tables_on_device(memory, caller, rope, k_view.dtype)
                sizes = tables.sizes
            call = memory.prepared(prepare_append, *tokens, layout, False, sizes)
            fresh = fresh_counts(memory, caller, counts, call.tokens)
            host_state, is_captured = memory.host_state, memory.is_captured()
            old = None
            if host_state.is_known and not isinstance(fresh, View) and not is_captured:
                count = call.tokens if fresh is None else fresh
                old = rolled(host_state, count)
                plan = appended(host_state if old is None else old.after, count, k_view.shape)
            else:
                plan = unplanned(host_state, call.tokens, captured=is_captured)
            if rope is not None and sizes is not None:
                is_shifted = old is not None or host_state.evicted is not None
                positions = positions_on_device(
                    memory, caller, rope, sizes, call.tokens, fresh, is_shifted=is_shifted
                )
            counts_view = counts_on_device(memory, fresh, call.tokens)
            fixes = plan.begins and memory.k_offset is not None
            if fixes:
                call = memory.prepared(prepare_append, *tokens, layout, True, sizes)
            given = (
                *memory.append_addresses,
                memory.counters(1),
                memory.refused_address,
                k_view.ptr,
                v_view.ptr,
                0 if counts_view is None else counts_view.ptr,
                0 if tables is None else tables.cos.ptr,
                0 if tables is None else tables.sin.ptr,
                0 if positions is None else positions.ptr,
            )
            if old is not None:
                evict(memory, old)
            store(memory, plan, call, given, caller.stream, is_captured=is_captured, fixes=fixes)


def store(
    memory: DeviceMemory,
    plan: Plan,
    call: AppendCall,
    given: tuple[int, ...],
    stream: int,
    *,
    is_captured: bool,
    fixes: bool = False,
) -> None:
    """Write the pages of a plan and enqueue the launches of an append, all of it or nothing.

    Parameters
    ----------
    given : tuple of int
        Addresses for the launches.
    fixes : bool
        Whether they fix offsets.
    """
    if is_captured:  # which nothing undoes
        memory.host_state = plan.after
    undo = memory.undoing(plan, offsets=fixes and not is_captured)
    with memory.transaction(plan.after, *undo):
        memory.write_pages(plan)
        call.launches(given, stream)


def prepare_append(
    geometry: KVGeometry,
    k: Array,
    v: Array,
    layout: str,
    fixes_offsets: bool,
    rope: RopeSizes | None = None,
) -> AppendCall:
    """Check an append on CuPy's current device, plan it and load its kernels.

    Parameters
    ----------
    geometry : KVGeometry
    k, v : Array
        Axes [batch, num_kv_heads, token, head_dim] or as the layout says; the last one contiguous.
    layout : {"HND", "NHD"}
    fixes_offsets : bool
        Whether the offsets of some sequences may not be fixed yet, of which these keys are the mean
        first. False if K is not smoothed.
    rope : RopeSizes, optional
        Of the tables that K turns by.

    Raises
    ------
    ArgumentError
        As `token_operands`.
    NoGPUError, UnsupportedError, CompileError
        As `cuattn.attention`.
    """
    of_k, of_v = token_operands(geometry, k, v, layout)
    tokens = of_k.tokens
    buffers = Buffers(*GIVEN)
    if not tokens:
        return AppendCall(tokens, Chain([], buffers))
    device = current_device()
    values = {
        "store": store_values(geometry, buffers),
        **{name: buffers[name] for name in GIVEN[len(STORE) : -len(ROPE)]},
        **_strides("k", of_k),
        **_strides("v", of_v),
        "seqlen": tokens,
        "rope": rope_values(rope, buffers),
    }
    launches = []
    if fixes_offsets:
        offsets = OffsetSpec(
            of_k.dtype, geometry.kv_format.head_dim, of_k.aligned, rope=rope is not None
        )
        launches.append(Launch(offsets, device, (of_k.heads,), values))
    aligned = of_k.aligned and of_v.aligned
    append = AppendSpec.of(
        geometry.kv_format,
        of_k.dtype,
        aligned=aligned,
        single=tokens == 1,
        rope=rope is not None,
    )
    grid = (of_k.heads * append.pieces(tokens),)
    launches.append(Launch(append, device, grid, values))
    return AppendCall(tokens, Chain(launches, buffers))


def token_operands(
    geometry: KVGeometry, k: Array, v: Array, layout: str
) -> tuple[Operand, Operand]:
    """Check tokens that are to be appended.

    Raises
    ------
    ArgumentError
        For shapes, types and devices that are not those of the cache or of each other.
    """
    operands = (operand_of("k", k, SCHEME, layout), operand_of("v", v, SCHEME, layout))
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


def fresh_counts(
    memory: DeviceMemory, caller: Caller, counts: Any, tokens: int
) -> View | NDArray[np.int64] | None:
    """Return how many tokens of each sequence there are: on the GPU, on the host, or all."""
    if counts is None:
        return None
    of_host = not hasattr(counts, "__dlpack_device__") or device_of(counts, "counts")[0] == CPU
    if of_host:
        return whole_counts("counts", counts, memory.geometry.batch, tokens)
    return memory.look_at_integers(caller, counts, "counts")


def counts_on_device(
    memory: DeviceMemory, fresh: View | NDArray[np.int64] | None, tokens: int
) -> View | None:
    """Return the counts as the kernels read them, None if all tokens are meant."""
    if isinstance(fresh, View):
        if fresh.dtype == "int32" and fresh.strides == (1,):
            return fresh
        return view_cupy(as_cupy(fresh).astype(np.int32, order="C"))
    if fresh is None or (fresh == tokens).all():
        return None
    return view_cupy(memory.sent(fresh.astype(np.int32)))


def _strides(name: str, x: Operand) -> dict[str, int]:
    batch, head, token, _ = x.strides
    return {
        f"{name}_stride_batch": batch,
        f"{name}_stride_head": head,
        f"{name}_stride_token": token,
    }
