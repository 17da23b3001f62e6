"""Sequences of a KV cache that become others, or lose pages: what is done to the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.sizes import ceil_div
from ..kv_format import UNIT_TOKENS
from .eviction import Eviction
from .host_state import HostState
from .memory import Memory, Writer
from .plans import Plan

__all__ = ["evict", "reorder", "write_plan"]

# Where no token is: behind all that there can be.
_NOWHERE = 2**30


def reorder(memory: Memory, sources: NDArray[np.int64], plan: Plan) -> None:
    """Give sequence b what sequence ``sources[b]`` has.

    Parameters
    ----------
    memory : Memory
        Which has settled; on its stream.
    sources : ndarray of int64 [batch]
    plan : Plan
        Of `plans.reordered`.
    """
    changed = np.flatnonzero(sources != np.arange(len(sources)))
    if not changed.size:
        return
    to, of = memory.sent(changed), memory.sent(sources[changed])
    others = [(x, x[of]) for x in memory.of_sequences()]
    undo = [memory.as_they_are(*((x, to) for x, _ in others))]
    writers: tuple[Writer, ...] = memory.write_lengths, memory.write_limits
    units: list[tuple[int, Any]] = []
    if memory.pages is None:
        units, saved = _contiguous(memory, changed, sources)
        undo.append(saved)
    else:
        undo += _overwritten(memory, plan)
        writers = (*writers, memory.write_table)
    with memory.transaction(plan.after, *writers, *undo):
        for b, new in units:
            memory.units[b, :, : new.shape[1]] = new
        memory.write_pages(plan)
        for x, new in others:
            x[to] = new
        for write in writers:
            write(plan.after)


def write_plan(memory: Memory, plan: Plan) -> None:
    """Turn to what a plan has for lengths and pages of sequences, with copies of pages."""
    writers: tuple[Writer, ...] = memory.write_lengths, memory.write_limits
    if memory.host_state.evicted is not None:
        writers = (*writers, memory.write_fixed)
    if plan.copies is not None:
        writers = (*writers, memory.write_table)
    with memory.transaction(plan.after, *writers, *_overwritten(memory, plan)):
        memory.write_pages(plan)
        for write in writers:
            write(plan.after)


def evict(memory: Memory, eviction: Eviction) -> None:
    """Take pages away from sequences; those behind them move up in the page table."""
    if not eviction.sequence.size:
        return
    rows = np.unique(eviction.sequence)
    starts = np.full((len(rows), int(np.bincount(eviction.sequence).max())), _NOWHERE)
    for row, b in zip(starts, rows, strict=True):
        place = eviction.place[eviction.sequence == b]
        row[: len(place)] = place * memory.geometry.page_size
    at, of_pages = memory.sent(rows), memory.sent(starts.astype(np.int32))
    counts = (memory.bare, 1), (memory.coarse, UNIT_TOKENS)
    counted = [(x, scale) for x, scale in counts if x is not None]
    saved = [(x, at) for x, _ in counted]
    fine: list[tuple[int, Any, Any]] = []
    if memory.fine is not None:
        fine = [_moved_fine(memory, eviction, int(b)) for b in rows]
        saved.append((memory.fine, at))
    writers: tuple[Writer, ...] = (
        *(memory.write_lengths, memory.write_limits),
        *(memory.write_table, memory.write_fixed),
    )
    with memory.transaction(eviction.after, *writers, memory.as_they_are(*saved)):
        for x, scale in counted:
            size = memory.geometry.page_size // scale
            # Of each page so many as it has of the first ones that are counted.
            gone = (x[at][:, None] - of_pages // scale).clip(0, size).sum(axis=1)
            x[at] = (x[at] - gone).astype(np.int32)
        for b, place, units in fine:
            memory.fine[b][:, place] = units
        for write in writers:
            write(eviction.after)


def _moved_fine(memory: Memory, eviction: Eviction, b: int) -> tuple[int, Any, Any]:
    """Return a sequence, places in `fine` and what they get there: all that it may keep."""
    geometry = memory.geometry
    count = ceil_div(int(eviction.before.lengths[b]), UNIT_TOKENS)
    gone = np.zeros(geometry.pages_per_sequence, np.bool_)
    gone[eviction.place[eviction.sequence == b]] = True
    left = np.flatnonzero(~gone.repeat(geometry.page_units)[:count])
    # The newest that are left are among the newest there were; which of them have lower halves is
    # known to the memory only.
    unit = np.arange(max(geometry.first_units, len(left) - geometry.recent_units), len(left))
    places = [memory.sent(geometry.fine_place(x)) for x in (unit, left[unit])]
    return b, places[0], memory.fine[b][:, places[1]]


def _overwritten(memory: Memory, plan: Plan) -> list[Writer]:
    """Return what writes pages again as they are now that copies of others are to be put in."""
    if plan.copies is None or not plan.copies.to.size:
        return []
    return [memory.as_they_are((memory.units, memory.sent(plan.copies.to)))]


def _contiguous(
    memory: Memory, changed: NDArray[np.int64], sources: NDArray[np.int64]
) -> tuple[list[tuple[int, Any]], Writer]:
    """Return sequences with the units that they get, and what writes their own again."""
    before = memory.host_state

    def units_of(b: int) -> Any:
        return memory.units[b, :, : memory.geometry.used_units(int(before.lengths[b]))]

    # The same copies serve those that get them.
    copies = {b: units_of(b).copy() for b in changed.tolist()}

    def write(host_state: HostState) -> None:
        if host_state is before:
            for b, was in copies.items():
                memory.units[b, :, : was.shape[1]] = was

    given = zip(changed.tolist(), sources[changed].tolist(), strict=True)
    return [(b, copies[of] if of in copies else units_of(of)) for b, of in given], write
