"""`KVCache`: K and V of 8 or 4 bits that grow token by token."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

from ..common.public import public
from .contents import Contents
from .operands import QueryOptions
from .options import geometry_of
from .stores import loaded_store, new_store

__all__ = ["KVCache"]


class KVCache(Contents):
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
        Of K and V; `k_bits` and `v_bits` are for one of them.
    group : {0, 32, 64}
        Channels that share a scale where codes have 4 bits; 0: all of them.
    v_zero : bool
        Give V of 4 bits zero points: codes span the range of its elements.
    smooth_k : bool
        Quantize keys less an offset of each sequence and head: the mean of at most 512 of the
        first tokens. It changes the rounding only; `attend` puts its effect on lse back.
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
    call that raises has changed nothing.

    Making or loading a cache waits for the GPU, and so do `gather`, `codes` and `save`; `lengths`,
    `truncate` and `set_page_table` do so if only the GPU knows the lengths, and `append` and
    `attend` never.

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
        group: Literal[0, 32, 64] = 0,
        v_zero: bool = False,
        smooth_k: bool = True,
        page_size: int = 0,
        num_pages: int | None = None,
        device: Literal["cpu"] | None = None,
    ) -> None:
        geometry = geometry_of(
            batch,
            num_kv_heads,
            head_dim,
            capacity,
            bits=bits,
            k_bits=k_bits,
            v_bits=v_bits,
            group=group,
            v_zero=v_zero,
            page_size=page_size,
            num_pages=num_pages,
        )
        super().__init__(new_store(geometry, smooth_k, device))

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
        self._store.append(k, v, counts, layout, stream)

    @public
    def attend(
        self,
        q: Any,
        *,
        is_causal: bool = True,
        scale: float | None = None,
        layout: str = "HND",
        return_lse: bool = False,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Attend to the tokens of each sequence; Q is quantized to 8 bits on the way.

        Parameters
        ----------
        q : array [batch, num_q_heads, n, head_dim]
            `num_q_heads` is a multiple of `num_kv_heads`. Otherwise as `k` of `append`.
        is_causal : bool
            Query i of n sees the first ``length - n + 1 + i`` tokens: the last one sees all.
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
            Only with `return_lse`.

        Raises
        ------
        ArgumentError, UnsupportedError, CompileError
            As for `cuattn.attention`.
        """
        options = QueryOptions(scale, is_causal, return_lse, layout)
        return self._store.attend(q, options, out, stream)

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
        cache = KVCache.__new__(KVCache)
        Contents.__init__(cache, loaded_store(path, device))
        return cache
