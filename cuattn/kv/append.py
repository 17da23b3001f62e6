"""Appending tokens to a KV cache on the GPU: what is checked, launched and noted."""

from __future__ import annotations

from typing import Any

from ..arrays.caller import Caller, device_of
from ..arrays.view import View
from .append_call import AppendCall, prepare_append
from .device import DeviceMemory, direct
from .device_rope import positions_on_device, tables_on_device
from .device_tokens import fresh_tokens, views_of
from .eviction import rolled
from .moves import evict
from .packed_tokens import GivenTokens
from .plans import Plan, appended, unplanned
from .rope import GivenRope

__all__ = ["append_on_device", "store"]


def append_on_device(
    memory: DeviceMemory,
    k: Any,
    v: Any,
    given: GivenTokens,
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
            sequences = given.checked_sequences(memory.geometry.batch)
            parts = None if sequences is None else len(sequences)
            kind = k_view.signature, v_view.signature, layout
            tables = sizes = positions = None
            if rope is not None:
                tables = tables_on_device(memory, caller, rope, k_view.dtype)
                sizes = tables.sizes
            call = memory.prepared(prepare_append, *kind, False, sizes, parts)
            fresh = fresh_tokens(memory, caller, given, sequences, call.tokens)
            host_state, is_captured = memory.host_state, memory.is_captured()
            old = None
            if host_state.is_known and not isinstance(fresh.counts, View) and not is_captured:
                count = call.tokens if fresh.counts is None else fresh.counts
                old = rolled(host_state, count)
                plan = appended(host_state if old is None else old.after, count, k_view.shape)
            else:
                plan = unplanned(host_state, call.tokens, captured=is_captured)
            if rope is not None and sizes is not None:
                is_shifted = old is not None or host_state.evicted is not None
                positions = positions_on_device(
                    memory,
                    caller,
                    rope,
                    sizes,
                    call.tokens,
                    fresh.counts,
                    is_shifted=is_shifted,
                    packed=fresh.packed,
                )
            views = views_of(memory, fresh, call.tokens)
            fixes = plan.begins and memory.k_offset is not None
            if fixes:
                call = memory.prepared(prepare_append, *kind, True, sizes, parts)
            addresses = (
                *memory.append_addresses,
                memory.counters(1),
                memory.refused_address,
                k_view.ptr,
                v_view.ptr,
                *views.addresses,
                0 if tables is None else tables.cos.ptr,
                0 if tables is None else tables.sin.ptr,
                0 if positions is None else positions.ptr,
            )
            if old is not None:
                evict(memory, old)
            store(
                memory, plan, call, addresses, caller.stream, is_captured=is_captured, fixes=fixes
            )


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
