"""The memory of a KV cache: its arrays, and how they are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..reference.kv_offsets import FIRST_TOKENS
from .geometry import KVGeometry
from .host_state import HostState
from .memory_arrays import MemoryArrays
from .pages import Entries
from .plans import Plan

__all__ = ["Memory", "Writer"]

# Writes what a host state says to the memory.
Writer: TypeAlias = Callable[[HostState], None]

# What takes the place of the page of an entry that has none; kernels never follow it.
_NOWHERE = 0


class Memory(MemoryArrays):
    """Arrays of a cache, and the host state of what the host knows of them.

    Parameters
    ----------
    geometry : KVGeometry
    smooth_k : bool
    xp : module
        NumPy or CuPy.

    Attributes
    ----------
    host_state : HostState
        Turned to at the end of a `transaction` only, but for what forgets or learns lengths.
    undo : tuple of function of a HostState
        What `settle` has to write: nothing, unless a change is under way or could not be undone.
    """

    def __init__(self, geometry: KVGeometry, smooth_k: bool, xp: Any = np) -> None:
        super().__init__(geometry, smooth_k, xp)
        self.host_state = HostState.empty(geometry)
        self.undo: tuple[Writer, ...] = ()
        self.write_limits(self.host_state)

    def call_on(self, stream: Any) -> AbstractContextManager[object]:
        """Return a context for changes to the memory, on a caller's stream.

        Raises
        ------
        ArgumentError
            For a stream, of which there is none in host memory.
        """
        if stream is not None:
            raise ArgumentError("stream", stream, "None for a cache in host memory")
        self.settle()
        return nullcontext()

    def wait(self) -> None:
        """Wait until the memory has what was done to it; in host memory that is at once."""

    def fetch(self) -> tuple[NDArray[np.int64], bool]:
        """Return the lengths, and whether an append has been refused since `forget_refusal`."""
        return self.lengths.astype(np.int64), False

    def forget_refusal(self) -> None:
        """Note that a refused append is of no interest; in host memory there is none."""

    def known_lengths(self) -> NDArray[np.int64]:
        """Return the lengths of all sequences, from the memory if the host does not know.

        Raises
        ------
        ArgumentError
            If the GPU has refused an append since the last time.
        """
        if self.host_state.is_known and not self.host_state.is_replayed:
            return self.host_state.lengths
        lengths, refused = self.fetch()
        self.host_state = self.host_state.learned(lengths)
        if refused:
            self.forget_refusal()
            self.wait()
            found = "more, in an append that the GPU has refused"
            raise ArgumentError("counts", found, "within the room of every sequence")
        return lengths

    @contextmanager
    def at_rest(self) -> Iterator[NDArray[np.int64]]:
        """Return a context in which all is done that was called; it gives the lengths."""
        lengths = self.known_lengths()
        self.wait()
        with self.call_on(None):
            yield lengths

    def shorten(self, lengths: Any, stream: Any) -> None:
        """Shorten sequences to at most the lengths in an array of the GPU.

        Raises
        ------
        ArgumentError
            If it does not fit, or the cache is in host memory.
        """
        raise ArgumentError("lengths", lengths, "in host memory, as the cache is")

    # ---- changes

    def transaction(self, after: HostState, *undo: Writer) -> Transaction:
        """Return a context that changes the memory; when all is done, `after` is the host state.

        Whatever is raised in between, out of memory or an interrupt, the host state stays as it
        was, and what the context may have written is written again from it, by `undo`. Should that
        fail too, the next call begins with it.

        Parameters
        ----------
        after : HostState
        *undo : function of a HostState
            Of `write_lengths` and its like those that write what the context changes.
        """
        return Transaction(self, after, undo)

    def turn_to(self, after: HostState, *writers: Writer) -> None:
        """Write what a host state says to the memory, in a transaction of its own."""
        with self.transaction(after, *writers):
            for write in writers:
                write(after)

    def settle(self) -> None:
        """Undo what a call has left behind that failed, and could not undo it itself."""
        for write in self.undo:
            write(self.host_state)
        self.undo = ()

    def write_lengths(self, host_state: HostState) -> None:
        """Write the lengths of a host state to the memory, if it knows them."""
        if host_state.is_known:
            self.lengths[...] = self.sent(host_state.lengths.astype(np.int32))

    def write_limits(self, host_state: HostState) -> None:
        """Write the limits of a host state to the memory."""
        self.limits[...] = self.sent(host_state.limits.astype(np.int32))

    def write_table(self, host_state: HostState) -> None:
        """Write the page table of a host state to the memory."""
        if host_state.pages is not None:
            self.pages[...] = self.sent(np.maximum(host_state.pages.table, _NOWHERE))

    def undoing(self, plan: Plan, *, offsets: bool) -> tuple[Writer, ...]:
        """Return what undoes an append.

        Parameters
        ----------
        plan : Plan
        offsets : bool
            Whether it may change offsets.
        """
        writers: tuple[Writer, ...] = self.write_lengths, self.write_limits
        if plan.copies is not None:
            writers = (*writers, self.write_table)
        lengths = self.host_state.lengths
        # Those of what begins are made anew, and those of longer sequences do not change.
        if offsets and ((lengths > 0) & (lengths <= FIRST_TOKENS)).any():
            writers = (*writers, self.as_they_are((self.k_offset, ...), (self.bare, ...)))
        return writers

    def as_they_are(self, *parts: tuple[Any, Any]) -> Writer:
        """Return what writes parts of arrays, each an array and an index, again as they are now."""
        before = self.host_state
        saved = [(x, index, x[index].copy()) for x, index in parts]

        def write(host_state: HostState) -> None:
            if host_state is before:  # not if all has been done
                for x, index, was in saved:
                    x[index] = was

        return write

    def write_fixed(self, host_state: HostState) -> None:
        """Write of which sequences the offsets stay what they are."""
        if self.fixed is not None:
            evicted = host_state.evicted
            tokens = np.zeros_like(host_state.lengths) if evicted is None else evicted.tokens
            self.fixed[...] = self.sent((tokens > 0).astype(np.int32))

    def write_entries(self, entries: Entries | None) -> None:
        """Write new entries of the page table, which mean nothing until the limits are raised."""
        if entries is not None:
            sequence, place, page = self.sent(np.stack(entries))
            self.pages[sequence, place] = page

    def write_pages(self, plan: Plan) -> None:
        """Give sequences the pages that a plan has for them, copy those that are to be copied."""
        if plan.copies is not None:
            if plan.copies.of.size:
                of, to = self.sent(np.stack(plan.copies))
                self.units[to] = self.units[of]
            self.write_table(plan.after)
        else:
            self.write_entries(plan.entries)
        if plan.copies is not None or plan.entries is not None:
            self.write_limits(plan.after)

    def copied(self) -> Memory:
        """Return the same in memory of its own; waits for the GPU."""
        with self.at_rest():
            other = type(self)(self.geometry, self.k_offset is not None)
            for mine, its in zip(self.arrays(), other.arrays(), strict=True):
                its[...] = mine
            other.host_state = self.host_state.copied()
        other.wait()
        return other


class Transaction:
    """See `Memory.transaction`; a class because it takes half as long as a generator."""

    __slots__ = ("_after", "_memory", "_undo")

    def __init__(self, memory: Memory, after: HostState, undo: tuple[Writer, ...]) -> None:
        self._memory, self._after, self._undo = memory, after, undo

    def __enter__(self) -> None:
        """Settle what was left, and note what is to be undone from here on."""
        self._memory.settle()
        self._memory.undo = self._undo

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Turn to the new host state, or undo."""
        if kind is None:
            self._memory.host_state = self._after
            self._memory.undo = ()
            return
        with suppress(Exception):
            self._memory.settle()
