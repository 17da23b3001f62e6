"""`KVCache`: K and V of 8 or 4 bits that grow token by token."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal, NoReturn, SupportsIndex

from ..common.public import check_keywords, class_naming_keywords
from ..errors import UnsupportedError
from .device import new_memory
from .files import read, restore
from .memory import Memory
from .options import check_choices, geometry_of
from .sequence_calls import SequenceCalls
from .token_calls import TokenCalls

__all__ = ["KVCache"]


@class_naming_keywords
class KVCache(TokenCalls, SequenceCalls):
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
        A multiple of 16 from 16 to 256. Memory and time are those of 64, 96, 128 or 256.
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
    window : int, optional
        Keep the newest tokens of each sequence only, by whole pages: an append begins with giving
        back those of which no token is among the last `window`, its own first one included. So
        every new token sees at least as many, and `attend` sees all that are kept. Only with pages.
    sink_tokens : int
        How many tokens at the beginning of each sequence a window keeps besides, by whole pages;
        with nested codes the `first` ones at least.
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
    that of nested codes tokens may have lost their lower halves that were to lose them, and that a
    window may have moved on.

    Sequences can share pages (`fork`, `reorder`), and lose some (`evict`, `window`). Positions of
    tokens are the caller's, who has turned keys by them: `positions` says which is next. Distances
    that `attend` counts (`window_size`, `alibi_slopes`), what `score_mod` and `mask_mod` are told,
    and columns of an `attn_mask` are of the tokens that are there; where tokens before the last
    ones remain, but not all of them, there are no such distances, and it refuses to count them.

    Making, loading or copying (`copy.deepcopy`) a cache waits for the GPU, and so do `gather`,
    `codes` and `save`; `lengths`, `truncate` and `set_page_table` do so if only the GPU knows the
    lengths, and `append` and `attend` never.

    Appends are checked on the host. It no longer knows the lengths after one that is captured into
    a graph, or whose counts are on the GPU, until `lengths` is read; meanwhile the GPU refuses all
    of an append if a sequence lacks room, no pages are given, and no window moves on: see
    `reserve`. Replays of a graph it does not see: read `lengths` after them. Make every call of a
    graph once before, and capture with an allocator of its own, as the notes of `cuattn.attention`
    show.
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
        window: int | None = None,
        sink_tokens: int = 0,
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
            window=window,
            sink_tokens=sink_tokens,
        )
        self._memory = new_memory(geometry, smooth_k, device)

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
        check_keywords(options, KVCache)
        geometry = geometry_of(batch, num_kv_heads, head_dim, capacity, **options)
        check_choices(smooth_k, device)
        return geometry.nbytes(smooth_k)

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

    def copy(self) -> KVCache:
        """Return a cache of its own with the same contents, where this one is; waits for the GPU.

        Graphs that append to this one do not append to the copy. `copy.copy` and `copy.deepcopy`
        are the same.
        """
        return KVCache._of(self._memory.copied())

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> KVCache:
        return self.copy()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UnsupportedError("a KVCache cannot be pickled: save it to a file, and load that")

    @staticmethod
    def _of(memory: Memory) -> KVCache:
        cache = KVCache.__new__(KVCache)
        cache._memory = memory
        return cache
