"""The sequences of a KV cache: how long they are, and where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.caller import device_of
from ..arrays.view import CPU
from ..errors import ArgumentError
from .store import Store

__all__ = ["Sequences"]


class Sequences:
    """What `KVCache` says of its sequences, and does to them without their tokens.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence, int32 [batch]; waits for the GPU if only that knows.

        Raises
        ------
        ArgumentError
            If the GPU has refused an append since the last time or `reset`, of which nothing was
            written. The lengths can be read the next time.
        """
        return self._known_lengths().astype(np.int32)

    @property
    def device_lengths(self) -> Any:
        """The same where the cache is: the array int32 [batch] that its kernels use."""
        return self._store.lengths

    @property
    def page_table(self) -> NDArray[np.int32] | None:
        """Pages of each sequence, int32 [batch, pages of the capacity]; -1 where there is none.

        None for a cache without pages.
        """
        pages = self._store.book.pages
        return None if pages is None else pages.table.copy()

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
        if hasattr(lengths, "__dlpack_device__") and device_of(lengths, "lengths")[0] != CPU:
            self._store.shorten(lengths, stream)
            return
        self._known_lengths()
        remaining = self._store.book.truncated(lengths)
        with self._store.call_on(stream):
            self._store.set_lengths(remaining)
            self._store.book.truncate(remaining)
            self._store.set_limits()

    def reset(self, *, stream: Any = None) -> None:
        """Empty all sequences; all pages are free, unless the caller has set them.

        Parameters
        ----------
        stream : int or stream, optional
            As for `attend`.
        """
        with self._store.call_on(stream):
            self._store.forget_refusal()
            self._store.set_lengths(np.zeros(self._store.geometry.batch, np.int64))
            self._store.book.reset()
            self._store.set_limits()
            if self._store.k_offset is not None:
                self._store.k_offset[...] = 0

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
        with self._store.call_on(stream):
            self._store.enter(self._store.book.reserve(tokens))

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
        self._known_lengths()
        with self._store.call_on(stream):
            self._store.book.replace_pages(table)
            self._store.set_pages()

    def _known_lengths(self) -> NDArray[np.int64]:
        """Return the lengths of all sequences, from the GPU if the host does not know them."""
        book = self._store.book
        if book.is_known and not book.is_replayed:
            return book.lengths
        lengths, refused = self._store.fetch()
        book.learn(lengths)
        if refused:
            found = "more, in an append that the GPU has refused"
            raise ArgumentError("counts", found, "within the room of every sequence")
        return book.lengths
