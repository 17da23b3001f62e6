"""`KVCache`: K and V of 8 or 4 bits that grow token by token."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.caller import device_of
from ..arrays.view import CPU
from ..common.public import public
from ..errors import UnsupportedError
from ..kv_format import KVFormat
from ..operands.scores import ALL_KEYS, checked_window
from ..reference.kv_cache import CachedOperand
from .append import append_on_device
from .attend import attend_on_device
from .contents import cached_operands, values
from .device import DeviceMemory, new_memory
from .files import read, restore, write
from .geometry import check_choices, geometry_of
from .host import append_on_host, attend_on_host
from .memory import Memory
from .query import QueryOptions

__all__ = ["KVCache"]


class KVCache:
    """Quantized keys and values of several sequences, for decoding.

    A token of a head has codes of 8 or 4 bits with a float32 scale, or one for each group of
    channels; `docs/numerics.md`, section 13, defines the numbers. Memory is taken once and never
    grows. The caller orders the calls on a cache: they are on one stream, or wait for each other.

    Parameters
    ----------
    batch : int
        Sequences.
    num_kv_heads : int
        Heads of K and V; each serves one query head or several.
    head_dim : int
        64, 96, 128 or 256.
    capacity : int
        Most tokens of a sequence.
    bits : {8, 4}
        Of K and V; `k_bits` and `v_bits` are for one of them. 4 alone, with none of these and
        without `v_zero`, is `nested`.
    group : {0, 32, 64}, optional
        Channels that share a scale where codes have 4 bits; 0: all of them. By default 0, but 64,
        if that divides head_dim, of K with nested codes.
    v_zero : bool
        Give V of 4 bits zero points: codes span the range of its elements.
    rotate : bool
        Rotate keys, and queries with them, by a randomized Hadamard matrix before they are
        quantized. Attention is the same; channels with outliers cost other channels less.
    nested : bool, optional
        Make codes of 8 bits whose upper halves, with scales and zero points of their own, are codes
        of 4 bits, and keep the lower halves of the first and the newest tokens only. So these have
        8 bits, all others 4, and nothing is quantized again when tokens grow old.
    first, recent : int, optional
        How many tokens at the beginning of each sequence and, at least, at its end have 8 bits;
        multiples of 16, by default 16 and 256.
    smooth_k : bool
        Quantize keys less an offset of each sequence and head: the mean of at most 512 of the
        tokens that it begins with, from the fifth on. Where these are no more than 16, the first
        128 keys have none, and it is fixed when there are more. It changes the rounding only;
        `attend` puts its effect on lse back.
    page_size : int
        Tokens of a page, a power of two from 16 to 256; 0 keeps each sequence in one piece.
    num_pages : int, optional
        Pages of all sequences together, by default enough for all of them at `capacity`.
    device : {None, "cpu"}
        CuPy's current GPU, or host memory and the arithmetic of `cuattn.reference`.

    Raises
    ------
    ArgumentError
        If an argument is wrong.
    NoGPUError, UnsupportedError
        If there is no GPU that can be used.

    Notes
    -----
    Arrays are as those of `cuattn.attention`, of any library, but all of them where the cache is. A
    call that raises has changed nothing; one that is interrupted has done all of it or nothing, but
    that of nested codes tokens may have lost their lower halves that were to lose them.

    Making, loading or copying (`copy.deepcopy`) a cache waits for the GPU, and so do `gather`,
    `codes` and `save`; `lengths`, `truncate` and `set_page_table` do so if only the GPU knows the
    lengths, and `append` and `attend` never.

    Appends are checked on the host. It no longer knows the lengths after one that is captured into
    a graph, or whose counts are on the GPU, until `lengths` is read; meanwhile the GPU refuses all
    of an append if a sequence lacks room, and no pages are given: see `reserve`. Replays of a graph
    it does not see: read `lengths` after them. Make every call of a graph once before, and capture
    with an allocator of its own, as the notes of `cuattn.attention` show.
    """

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        bits: Literal[8, 4] = 8,
        k_bits: Literal[8, 4] | None = None,
        v_bits: Literal[8, 4] | None = None,
        group: Literal[0, 32, 64] | None = None,
        v_zero: bool = False,
        rotate: bool = True,
        nested: bool | None = None,
        first: int | None = None,
        recent: int | None = None,
        smooth_k: bool = True,
        page_size: int = 0,
        num_pages: int | None = None,
        device: Literal["cpu"] | None = None,
    ) -> None:
        sizes = batch, num_kv_heads, head_dim, capacity
        geometry = geometry_of(
            *sizes,
            bits=bits,
            k_bits=k_bits,
            v_bits=v_bits,
            group=group,
            v_zero=v_zero,
            page_size=page_size,
            num_pages=num_pages,
            rotate=rotate,
            nested=nested,
            first=first,
            recent=recent,
        )
        self._memory = new_memory(geometry, smooth_k, device)

    @property
    def format(self) -> KVFormat:
        """What the numbers mean."""
        return self._memory.geometry.kv_format

    @property
    def nbytes(self) -> int:
        """Bytes of the cache, but for a few counters."""
        return self._memory.nbytes

    @staticmethod
    def bytes_needed(
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        smooth_k: bool = True,
        device: Literal["cpu"] | None = None,
        **options: Any,
    ) -> int:
        """Return `nbytes` of a cache that is not made, from the arguments of `KVCache`.

        Raises
        ------
        ArgumentError
            If one is wrong.
        """
        geometry = geometry_of(batch, num_kv_heads, head_dim, capacity, **options)
        check_choices(smooth_k, device)
        return geometry.nbytes(smooth_k)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token of one sequence: codes and scales of all heads, of K and V.

        With nested codes those of a token of 4 bits. The lower halves take memory once, as much
        again for `first` + `recent` + 16 tokens of each sequence, which `nbytes` has.
        """
        return self._memory.geometry.bytes_per_token

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence, int32 [batch]; waits for the GPU if only that knows.

        Raises
        ------
        ArgumentError
            If the GPU has refused an append since the last time or `reset`, of which nothing was
            written. The lengths can be read the next time.
        """
        return self._memory.known_lengths().astype(np.int32)

    @property
    def device_lengths(self) -> Any:
        """The same where the cache is: the array int32 [batch] that its kernels use."""
        return self._memory.lengths

    @property
    def page_table(self) -> NDArray[np.int32] | None:
        """Pages of each sequence, int32 [batch, pages of the capacity]; -1 where there is none.

        None for a cache without pages.
        """
        pages = self._memory.host_state.pages
        return None if pages is None else pages.table

    @public
    def append(
        self, k: Any, v: Any, *, counts: Any = None, layout: str = "HND", stream: Any = None
    ) -> None:
        """Quantize tokens and put them after those that there are.

        Parameters
        ----------
        k, v : array [batch, num_kv_heads, n, head_dim]
            With layout "NHD" tokens come before heads. float16, bfloat16 or float32, where the
            cache is, of any library; copied first if the last axis is not contiguous.
        counts : array_like of int [batch], optional
            How many of the n tokens of each sequence there are; by default all. Counts on the host
            are checked there, and cannot be captured into a graph; those on the GPU are checked by
            it.
        layout : {"HND", "NHD"}
        stream : int or stream, optional
            As for `cuattn.attention`.

        Raises
        ------
        ArgumentError
            If an argument is wrong, or a sequence or the free pages lack room. Nothing has changed.
        UnsupportedError, CompileError
            As for `cuattn.attention`.
        """
        if isinstance(self._memory, DeviceMemory):
            append_on_device(self._memory, k, v, counts, layout, stream)
        else:
            append_on_host(self._memory, k, v, counts, layout, stream)

    @public
    def attend(
        self,
        q: Any,
        *,
        is_causal: bool = True,
        window_size: tuple[int, int] = ALL_KEYS,
        softcap: float = 0.0,
        sinks: Any = None,
        attn_mask: Any = None,
        alibi_slopes: Any = None,
        scale: float | None = None,
        layout: str = "HND",
        return_lse: bool = False,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Attend to the tokens of each sequence; Q is quantized to 8 bits on the way.

        Query i of n stands beside token ``length - n + i``, its own: the last query beside the last
        token. Options that change the logits may be combined. They do it in this order: `softcap`,
        `alibi_slopes`, an `attn_mask` of floats; then tokens are hidden, by all that hides some,
        and `sinks` take part in the softmax.

        Parameters
        ----------
        q : array [batch, num_q_heads, n, head_dim]
            `num_q_heads` is a multiple of `num_kv_heads`. Otherwise as `k` of `append`.
        is_causal : bool
            Hide the tokens behind a query's own: query i of n sees the first ``length - n + 1 + i``
            tokens, the last one sees all.
        window_size : (int, int)
            How many tokens before and behind its own a query sees, left and right; -1 for all. So
            ``(W - 1, 0)`` are W tokens, which Hugging Face calls a sliding window of W. Tokens that
            no query of a sequence sees are not read: time goes with the window and n.
        softcap : float
            Make a logit s ``softcap * tanh(s / softcap)``, as in Gemma 2; 0 does not.
        sinks : array [num_q_heads], optional
            A logit of each query head that takes part in the softmax and has no value, as in
            gpt-oss: natural, neither scaled nor capped. float16, bfloat16 or float32, whatever `q`
            is; -inf is no sink.
        attn_mask : array, optional
            It broadcasts to [batch, num_q_heads, n, m], whatever the layout, of the last m tokens
            of each sequence, whatever its length: its last column is the last token's. All tokens
            before those are seen, and columns of tokens that are not there mean nothing; m is at
            most the capacity. So a tree of drafts is [batch, 1, n, n]. Of bool, True is seen. Of
            float16, bfloat16 or float32 it is added to the logits, natural; -inf and the least
            number of its type hide the token. It is read through its strides, never expanded.
        alibi_slopes : array [num_q_heads] or [batch, num_q_heads], optional
            The slope times a token's distance from the query's own is taken from its logit.
            float16, bfloat16 or float32.
        scale : float, optional
            Factor of the logits, ``1/sqrt(head_dim)`` by default.
        layout : {"HND", "NHD"}
        return_lse : bool
            Return the log-sum-exp of the logits too.
        out : array, optional
            As for `cuattn.attention`.
        stream : int or stream, optional
            As for `cuattn.attention`.

        Returns
        -------
        o : array with the shape and type of `q`
            As for `cuattn.attention`. A row that sees no token is 0.
        lse : array of float32 [batch, num_q_heads, n]
            Only with `return_lse`. It includes the sink, and is the sink, or -inf without one, of a
            row that sees no token.

        Raises
        ------
        ArgumentError, UnsupportedError, CompileError
            As for `cuattn.attention`.

        Notes
        -----
        What an option is decides which kernel is used, not what is in an array: in a graph lengths,
        sinks, slopes and masks may change from one replay to the next.
        """
        arrays = {"sinks": sinks, "alibi_slopes": alibi_slopes, "attn_mask": attn_mask}
        scores: dict[Any, Any] = {name: x for name, x in arrays.items() if x is not None}
        window = window_size if window_size is ALL_KEYS else checked_window(window_size)
        options = QueryOptions(scale, is_causal, return_lse, layout, window, softcap)
        if isinstance(self._memory, DeviceMemory):
            return attend_on_device(self._memory, q, options, scores, out, stream)
        return attend_on_host(self._memory, q, options, scores, out, stream)

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

    def gather(self, dtype: str = "float16") -> tuple[Any, Any]:
        """Return K and V as they are represented, in new arrays; waits for the GPU.

        Parameters
        ----------
        dtype : {"float16", "bfloat16", "float32"}

        Returns
        -------
        k, v : array [batch, num_kv_heads, longest length, head_dim]
            Of CuPy, or of NumPy for a cache in host memory; 0 beyond the length of a sequence.

        Raises
        ------
        ArgumentError
            For another type.
        """
        with self._memory.at_rest() as lengths:
            return values(self._memory, lengths, dtype)

    def codes(self) -> tuple[CachedOperand, CachedOperand]:
        """Return codes and scales of K and V on the host; waits for the GPU."""
        with self._memory.at_rest() as lengths:
            return cached_operands(self._memory, lengths)

    def save(self, path: str | PathLike[str]) -> None:
        """Write what the cache holds to a file of the safetensors format, whole or not at all.

        Waits for the GPU.

        Raises
        ------
        ArgumentError
            If there can be no such file.
        CuattnError
            If the package safetensors is missing.
        """
        with self._memory.at_rest() as lengths:
            write(path, self._memory, lengths)

    @staticmethod
    def load(path: str | PathLike[str], device: Literal["cpu"] | None = None) -> KVCache:
        """Return a cache with the options and the contents of one that was saved.

        Pages may be others than they were.

        Raises
        ------
        ArgumentError
            If there is no such file, or it is another one or damaged.
        CuattnError
            If the package safetensors is missing.
        NoGPUError, UnsupportedError
            If there is no GPU that can be used.
        """
        saved = read(path)
        memory = new_memory(saved.geometry, saved.k_offset is not None, device)
        restore(memory, saved)
        return KVCache._of(memory)

    def __deepcopy__(self, memo: object = None) -> KVCache:
        """Return a cache of its own with the same contents, where this one is; waits for the GPU.

        Graphs that append to this one do not append to the copy.
        """
        return KVCache._of(self._memory.copied())

    __copy__ = __deepcopy__

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UnsupportedError("a KVCache cannot be pickled: save it to a file, and load that")

    @staticmethod
    def _of(memory: Memory) -> KVCache:
        cache = KVCache.__new__(KVCache)
        cache._memory = memory
        return cache
