"""The calls of a KV cache that change which tokens its sequences have, and in which pages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.caller import device_of
from ..arrays.view import CPU
from ..common.public import class_naming_keywords
from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..reference.arrays import whole_numbers
from .eviction import chosen
from .lengths import Lengths
from .moves import evict, reorder, write_plan
from .plans import Plan, reordered, reserving, truncated

__all__ = ["SequenceCalls"]


@class_naming_keywords
class SequenceCalls(Lengths):
    """What a cache does with sequences as they are, whatever a token is."""

    def truncate(self, lengths: ArrayLike, *, stream: Any = None) -> None:
        """Shorten sequences, as speculative decoding does; pages without tokens are free again.

        Parameters
        ----------
        lengths : array_like of int [batch], or array of the GPU
            Tokens that remain, none more than there are. Of an array on the GPU a sequence keeps at
            most as many, and its pages; the host no longer knows the lengths then.
        stream : int or stream, optional
            As for `attend`.

        Raises
        ------
        ArgumentError
            If lengths do not fit, or are on the GPU while sequences share pages or may have lost
            some. Nothing has changed.
        """
        memory = self._memory
        if hasattr(lengths, "__dlpack_device__") and device_of(lengths, "lengths")[0] != CPU:
            memory.shorten(lengths, stream)
            return
        memory.known_lengths()
        with memory.call_on(stream):
            write_plan(memory, truncated(memory.host_state, lengths))

    def reset(self, *, stream: Any = None) -> None:
        """Empty all sequences; all pages are free, unless the caller has set them.

        Parameters
        ----------
        stream : int or stream, optional
            As for `attend`.
        """
        memory = self._memory
        with memory.call_on(stream):
            write_plan(memory, Plan(memory.host_state.emptied()))
            memory.forget_refusal()
            # Keys of sequences with tokens need their offsets: not before these are gone for good.
            if memory.k_offset is not None:
                memory.k_offset[...] = 0

    def reserve(self, tokens: int, *, stream: Any = None) -> None:
        """Give every sequence the pages for a number of tokens, so that graphs can append them.

        Shared pages that they would append to are copied. Sequences keep it so, whatever they are
        forked from, until all are emptied.

        Parameters
        ----------
        tokens : int
            At most the capacity. Without pages there is nothing to do.
        stream : int or stream, optional
            As for `attend`.

        Raises
        ------
        ArgumentError
            If there are not as many free pages. Nothing has changed.
        """
        memory = self._memory
        with memory.call_on(stream):
            plan = reserving(memory.host_state, tokens)
            writers = () if plan.copies is None else (memory.write_table,)
            with memory.transaction(plan.after, memory.write_limits, *writers):
                memory.write_pages(plan)

    def fork(self, src: int, dst: int, *, stream: Any = None) -> None:
        """Make a sequence a copy of another one; what it had is lost.

        With pages it shares those of `src`, which are copied when one of the sequences appends to
        them: the last page, unless it is full. So a prefix of many sequences is kept once. Without
        pages the memory is copied.

        Parameters
        ----------
        src, dst : int
            Sequences.
        stream : int or stream, optional
            As for `attend`.

        Raises
        ------
        ArgumentError
            If there is no such sequence; or there are too few free pages for copies where graphs
            append, which have to be made at once. Nothing has changed.
        UnsupportedError
            If the pages are the caller's, or the call is captured into a graph.
        """
        batch = self._memory.geometry.batch
        for name, value in (("src", src), ("dst", dst)):
            if not is_whole_number(value) or not 0 <= value < batch:
                raise ArgumentError(name, value, f"a sequence from 0 to {batch - 1}")
        sources = np.arange(batch)
        sources[dst] = src
        self._reorder(sources, "fork", (src, dst), stream)

    def reorder(self, indices: ArrayLike, *, stream: Any = None) -> None:
        """Make sequence b a copy of what sequence ``indices[b]`` was, as beam search does.

        Pages are shared as by `fork`. Without pages the memory of sequences that change is taken a
        second time until they have.

        Parameters
        ----------
        indices : array_like of int [batch]
            In host memory. A sequence may be there several times, and is lost if it is not there.
        stream : int or stream, optional
            As for `attend`.

        Raises
        ------
        ArgumentError
            If there is no such sequence, or as for `fork`. Nothing has changed.
        UnsupportedError
            As for `fork`.
        """
        batch = self._memory.geometry.batch
        sources = whole_numbers("indices", indices, (batch,)).astype(np.int64)
        if ((sources < 0) | (sources >= batch)).any():
            raise ArgumentError("indices", indices, f"of sequences from 0 to {batch - 1}")
        self._reorder(sources, "indices", indices, stream)

    def _reorder(self, sources: NDArray[np.int64], name: str, value: Any, stream: Any) -> None:
        memory = self._memory
        memory.known_lengths()
        with memory.call_on(stream):
            reorder(memory, sources, reordered(memory.host_state, sources, name, value))

    def evict(self, sequence: int, pages: ArrayLike, *, stream: Any = None) -> None:
        """Take pages away from a sequence, though tokens come after theirs.

        The sequence is shorter then, and `attend` sees the tokens that are left: as these were, at
        the positions that their keys have been given. `positions` still counts those that are gone.

        Parameters
        ----------
        sequence : int
        pages : array_like of int
            Places in the sequence's row of `page_table`, in any order: before the page of the last
            token, and of nested codes behind those of the `first` tokens.
        stream : int or stream, optional
            As for `attend`.

        Raises
        ------
        ArgumentError
            If there is no such sequence, or it does not have such pages. Nothing has changed.
        UnsupportedError
            If the cache has no pages, or they are the caller's; if the call is captured into a
            graph, or one shortens sequences.
        """
        memory = self._memory
        memory.known_lengths()
        with memory.call_on(stream):
            evict(memory, chosen(memory.host_state, sequence, pages))

    def set_page_table(self, table: ArrayLike, *, stream: Any = None) -> None:
        """Use the caller's pages from now on, where whatever has been appended has to lie.

        The cache gives no pages itself any more: a sequence has room for the tokens of its own.

        Parameters
        ----------
        table : array_like of int [batch, pages of the capacity]
            Pages of each sequence in their order, then -1. None may be there twice.
        stream : int or stream, optional
            As for `attend`.

        Raises
        ------
        ArgumentError
            If the table is wrong, or lacks pages for tokens that there are; or if the cache has a
            window, of which it gives pages back. Nothing has changed.
        """
        memory = self._memory
        memory.known_lengths()
        with memory.call_on(stream):
            after = memory.host_state.replaced_pages(table)
            memory.turn_to(after, memory.write_table, memory.write_limits)
