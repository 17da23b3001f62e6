"""`LatentKVCache`: what DeepSeek's MLA keeps of a token, once for K, V and all heads."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Any, Literal, NoReturn, SupportsIndex

from ..common.public import class_naming_keywords, public
from ..errors import ArgumentError, UnsupportedError
from ..kv.device import DeviceMemory, new_memory
from ..kv.files import restore, write
from ..kv.memory import Memory
from ..kv.packed_tokens import GivenTokens
from ..kv.sequence_calls import SequenceCalls
from ..reference.latent import LatentTokens
from .device import append_on_device, attend_on_device
from .files import FORM, read_latent
from .format import LatentFormat, LatentGeometry
from .host import append_on_host, attend_on_host
from .query import LatentOptions
from .units import read_tokens

__all__ = ["LatentKVCache"]


@class_naming_keywords
class LatentKVCache(SequenceCalls):
    """Latent vectors and rotary keys of several sequences, for decoding in the absorbed form.

    A token has a latent vector of 512 channels, in codes of 8 bits with one float32 scale, and 64
    rotary channels of 16 bits: 644 bytes, for K and V of all heads. K is both, V the latent vector;
    `docs/numerics.md`, section 13.9, defines the numbers. Memory is taken once and never grows. The
    caller orders the calls on a cache: they are on one stream, or wait for each other.

    Parameters
    ----------
    batch : int
        Sequences.
    capacity : int
        Most tokens of a sequence.
    rope_dtype : {"bfloat16", "float16"}
        What rotary channels are kept in, and Q's are multiplied in.
    page_size : int
        Tokens of a page: 64, 128 or 256; 0 keeps each sequence in one piece.
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
    Arrays, checks, graphs and what waits for the GPU are as with a `cuattn.KVCache`.

    The arithmetic is that of FlashMLA's and SnapMLA's 8-bit caches (arXiv 2602.10718), with
    integers in the place of FP8: one scale of a token serves K and V, and the rotary part is not
    quantized.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        *,
        rope_dtype: Literal["bfloat16", "float16"] = "bfloat16",
        page_size: int = 0,
        num_pages: int | None = None,
        device: Literal["cpu"] | None = None,
    ) -> None:
        geometry = _geometry(batch, capacity, rope_dtype, page_size, num_pages)
        self._memory = new_memory(geometry, False, device)

    @public
    def append(
        self,
        latent: Any,
        rope: Any,
        *,
        counts: Any = None,
        cu_seqlens_k: Any = None,
        sequences: Any = None,
        stream: Any = None,
    ) -> None:
        """Quantize tokens and put them after those that there are.

        Parameters
        ----------
        latent : array [batch, n, 512]
            After its norm. float16, bfloat16 or float32, where the cache is, of any library; copied
            first if the last axis is not contiguous.
        rope : array [batch, n, 64]
            The rotary key, rotated already, of the same type. Both may be parts of one array.
        counts : array_like of int [batch], optional
            How many of the n tokens of each sequence there are; as for `cuattn.KVCache.append`.
        cu_seqlens_k : array_like of int [parts + 1], optional
            Tokens of several sequences lie end to end: `latent` is [total, 512], `rope` [total,
            64]; as for `cuattn.KVCache.append`.
        sequences : array_like of int [parts], optional
            With it, whose the parts are; as for `cuattn.KVCache.append`.
        stream : int or stream, optional
            As for `cuattn.attention`.

        Raises
        ------
        ArgumentError
            If an argument is wrong, or a sequence or the free pages lack room. Nothing has changed.
        UnsupportedError, CompileError
            As for `cuattn.attention`.
        """
        given = GivenTokens(counts, cu_seqlens_k, sequences)
        if isinstance(self._memory, DeviceMemory):
            append_on_device(self._memory, latent, rope, given, stream)
        else:
            append_on_host(self._memory, latent, rope, given, stream)

    @public
    def attend(
        self,
        q: Any,
        *,
        scale: float,
        is_causal: bool = True,
        layout: str = "HND",
        return_lse: bool = False,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Attend to the tokens of each sequence; Q's latent channels are quantized on the way.

        Query i of n stands beside token ``length - n + i``, its own.

        Parameters
        ----------
        q : array [batch, num_q_heads, n, 576]
            The 512 channels that the up-projection of K has been absorbed into, then the 64 rotary
            ones. Any number of heads. Otherwise as `latent` of `append`.
        scale : float
            Factor of the logits, above 0: that of the model, which its head dimension before the
            absorption decides, such as ``192**-0.5`` times YaRN's factor in DeepSeek-V3. 576 says
            nothing of it, so there is no default.
        is_causal : bool
            Hide the tokens behind a query's own.
        layout : {"HND", "NHD"}
        return_lse : bool
            Return the log-sum-exp of the logits too.
        out : array, optional
            As for `cuattn.attention`, with 512 channels.
        stream : int or stream, optional
            As for `cuattn.attention`.

        Returns
        -------
        o : array [batch, num_q_heads, n, 512], of the type of `q`
            Before V's up-projection; laid out as `q`. A row that sees no token is 0.
        lse : array of float32 [batch, num_q_heads, n]
            Only with `return_lse`; -inf of a row that sees no token.

        Raises
        ------
        ArgumentError, UnsupportedError, CompileError
            As for `cuattn.attention`.
        """
        options = LatentOptions(scale, is_causal, return_lse, layout)
        if isinstance(self._memory, DeviceMemory):
            return attend_on_device(self._memory, q, options, out, stream)
        return attend_on_host(self._memory, q, options, out, stream)

    @staticmethod
    def bytes_needed(
        batch: int,
        capacity: int,
        *,
        rope_dtype: Literal["bfloat16", "float16"] = "bfloat16",
        page_size: int = 0,
        num_pages: int | None = None,
    ) -> int:
        """Return `nbytes` of a cache that is not made.

        Raises
        ------
        ArgumentError
            If an argument is wrong.
        """
        return _geometry(batch, capacity, rope_dtype, page_size, num_pages).nbytes(False)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token of one sequence: codes, rotary channels and the scale."""
        return self._memory.geometry.bytes_per_token

    def codes(self) -> LatentTokens:
        """Return what the cache holds, on the host; waits for the GPU."""
        with self._memory.at_rest() as lengths:
            return read_tokens(self._memory, lengths)

    def save(self, path: str | PathLike[str]) -> None:
        """Write what the cache holds to a file of the safetensors format: see `KVCache.save`.

        Raises
        ------
        ArgumentError
            If there can be no such file.
        CuattnError
            If the package safetensors is missing.
        """
        with self._memory.at_rest() as lengths:
            write(path, self._memory, lengths, FORM)

    @staticmethod
    def load(path: str | PathLike[str], device: Literal["cpu"] | None = None) -> LatentKVCache:
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
        saved = read_latent(path)
        memory = new_memory(saved.geometry, False, device)
        restore(memory, saved)
        return LatentKVCache._of(memory)

    def copy(self) -> LatentKVCache:
        """Return a cache of its own with the same contents: see `cuattn.KVCache.copy`."""
        return LatentKVCache._of(self._memory.copied())

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> LatentKVCache:
        return self.copy()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        text = "a LatentKVCache cannot be pickled: save it to a file, and load that"
        raise UnsupportedError(text)

    @staticmethod
    def _of(memory: Memory) -> LatentKVCache:
        cache = LatentKVCache.__new__(LatentKVCache)
        cache._memory = memory
        return cache


def _geometry(
    batch: int, capacity: int, rope_dtype: str, page_size: int, num_pages: int | None
) -> LatentGeometry:
    kv_format = LatentFormat(rope_dtype=rope_dtype)
    if not page_size:
        if num_pages is not None:
            raise ArgumentError("num_pages", num_pages, "None, unless there is a page_size")
        # Whatever else is wrong is found before the number of pages is made of the batch.
        one = LatentGeometry(kv_format, 1, 1, capacity, page_size, 1)
        return replace(one, batch=batch, num_pages=batch)
    one = LatentGeometry(kv_format, batch, 1, capacity, page_size, num_pages=1)
    wanted = batch * one.pages_per_sequence if num_pages is None else num_pages
    return replace(one, num_pages=wanted)
