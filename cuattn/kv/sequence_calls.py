"""The calls of a KV cache that change which tokens its sequences have, and in which pages."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from ..arrays.caller import device_of
from ..arrays.view import CPU
from .holdings import Holdings

__all__ = ["SequenceCalls"]


class SequenceCalls(Holdings):
    """What a `KVCache` does with sequences as they are."""

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
            If lengths do not fit. Nothing has changed.
        """
        memory = self._memory
        if hasattr(lengths, "__dlpack_device__") and device_of(lengths, "lengths")[0] != CPU:
            memory.shorten(lengths, stream)
            return
        memory.known_lengths()
        with memory.call_on(stream):
            after = memory.host_state.truncated(lengths)
            memory.turn_to(after, memory.write_lengths, memory.write_limits)

    def reset(self, *, stream: Any = None) -> None:
        """Empty all sequences; all pages are free, unless the caller has set them.

        Parameters
        ----------
        stream : int or stream, optional
            As for `attend`.
        """
        memory = self._memory
        with memory.call_on(stream):
            memory.turn_to(memory.host_state.emptied(), memory.write_lengths, memory.write_limits)
            memory.forget_refusal()
            # Keys of sequences with tokens need their offsets: not before these are gone for good.
            if memory.k_offset is not None:
                memory.k_offset[...] = 0

    def reserve(self, tokens: int, *, stream: Any = None) -> None:
        """Give every sequence the pages for a number of tokens, so that graphs can append them.

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
            after, entries, _ = memory.host_state.reserving(tokens)
            memory.write_entries(entries)
            memory.turn_to(after, memory.write_limits)

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
            If the table is wrong, or lacks pages for tokens that there are. Nothing has changed.
        """
        memory = self._memory
        memory.known_lengths()
        with memory.call_on(stream):
            after = memory.host_state.replaced_pages(table)
            memory.turn_to(after, memory.write_table, memory.write_limits)
