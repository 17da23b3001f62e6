"""KV caches full of noise, and the bytes that a decoding call must read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import cuattn

from ..common.sizes import ceil_div
from ..kv_format import UNIT_TOKENS
from .cases import Case
from .inputs import PERIOD, token_noise

# What the record calls them, and the options of the cache.
SCHEMES: dict[str, dict[str, Any]] = {"kv-int8": {"bits": 8}, "kv-int4": {"bits": 4}}
FAMILY = "decode"


def filled(
    case: Case,
    scheme: str,
    *,
    lengths: Sequence[int] | None = None,
    room: int = 0,
    page_size: int = 0,
) -> cuattn.KVCache:
    """Return a cache of noise.

    Parameters
    ----------
    case : Case
    scheme : str
        One of `SCHEMES`.
    lengths : sequence of int, optional
        Tokens of each sequence; by default the case's `seqlen_kv`.
    room : int
        Tokens that each sequence has room for besides.
    page_size : int
        Tokens of a page; pages are in random order then.
    """
    tokens = np.full(case.batch, case.seqlen_kv) if lengths is None else np.asarray(lengths)
    longest = int(tokens.max())
    cache = cuattn.KVCache(
        case.batch,
        case.num_kv_heads,
        case.head_dim,
        longest + room,
        page_size=page_size,
        **SCHEMES[scheme],
    )
    if page_size:
        of_sequence = ceil_div(longest + room, page_size)
        order = np.random.default_rng(0).permutation(case.batch * of_sequence)
        cache.set_page_table(order.reshape(case.batch, of_sequence).astype(np.int32))
    k, v = (token_noise(case, min(longest, PERIOD), seed) for seed in (1, 2))
    for first in range(0, longest, PERIOD):
        counts = np.clip(tokens - first, 0, PERIOD)
        most = int(counts.max())
        cache.append(k[:, :, :most], v[:, :, :most], counts=counts)
    return cache


def bytes_read(case: Case, cache: cuattn.KVCache, lengths: Sequence[int]) -> int:
    """Return the bytes of all units that hold tokens: codes, scales and zero points.

    Of nested codes also those of the lower halves that there are.
    """
    of_sequences = [ceil_div(length, UNIT_TOKENS) for length in lengths]
    units, fine = sum(of_sequences), cache._memory.fine
    if fine is not None:
        units += sum(min(n, fine.shape[2]) for n in of_sequences)
    return case.num_kv_heads * units * cache.format.used_bytes
