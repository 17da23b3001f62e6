"""Sequences of a `cuattn.KVCache` in another order, as beam search wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.sizes import ceil_div
from ..errors import ArgumentError
from ..kv.cache import KVCache
from ..kv_format import UNIT_TOKENS

__all__ = ["reorder"]


def reorder(kv: KVCache, sequences: Sequence[int], stream: Any = None) -> None:
    """Give sequence b the tokens of ``sequences[b]``, bit for bit.

    Parameters
    ----------
    kv : KVCache
        Without pages, of which two sequences cannot share one.
    sequences : sequence of int [batch]
        A sequence may be there several times.
    stream : stream, optional
        As for `KVCache.attend`.

    Raises
    ------
    ArgumentError
        If there is no such sequence, or their number is not that of the cache.
    """
    memory = kv._memory
    batch = memory.geometry.batch
    sources = np.asarray(sequences, np.int64)
    if sources.shape != (batch,) or ((sources < 0) | (sources >= batch)).any():
        raise ArgumentError("beam_idx", list(sequences), f"{batch} numbers of sequences")
    if memory.geometry.page_size:
        raise ArgumentError("page_size", memory.geometry.page_size, "0 to reorder sequences")
    lengths = memory.known_lengths()
    changed = np.flatnonzero(sources != np.arange(batch))
    used = ceil_div(int(lengths.max()), UNIT_TOKENS)
    with memory.call_on(stream):
        to, of = memory.sent(changed), memory.sent(sources[changed])
        units = memory.units[of, :, :used]
        offsets = None if memory.k_offset is None else memory.k_offset[of]
        after = memory.host_state.learned(lengths[sources])
        with memory.transaction(after, memory.write_lengths):
            memory.units[to, :, :used] = units
            if offsets is not None:
                memory.k_offset[to] = offsets
            memory.write_lengths(after)
