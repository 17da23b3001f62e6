"""Caches whose sequences share pages and lose some, and what tests of them count."""

import numpy as np
from kv_cases import FORMATS, options, tokens

from cuattn import KVCache

PAGED = {"page_size": 16, "num_pages": 12}


def filled(rng, device="cpu", kv_format=FORMATS["8"], counts=(50, 0, 21), **others):
    """Return a cache with sequences of some tokens."""
    sizes = (3, 2, kv_format.head_dim, 80)
    cache = KVCache(*sizes, device=device, **options(kv_format), **others)
    cache.append(*tokens(rng, 3, 2, max(counts), kv_format.head_dim), counts=list(counts))
    return cache


def free_pages(cache):
    pages = cache._memory.host_state.pages
    return len(pages.returned) + cache._memory.geometry.num_pages - pages.unused


def shared_with(cache, b):
    """Return how many first pages of sequence b are those of sequence 0."""
    row, first = cache.page_table[b], cache.page_table[0]
    return int(np.cumprod((row == first) & (row != -1)).sum())
