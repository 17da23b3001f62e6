"""Tokens, queries and latent caches that their tests share."""

import numpy as np

from cuattn import LatentKVCache

SCALE = 192**-0.5
BATCH = 3


def tokens(rng, count, dtype=np.float16, batch=BATCH):
    """Return latent vectors with outliers and rotary keys."""
    latent = rng.standard_normal((batch, count, 512))
    latent[..., 7] *= 6
    return latent.astype(dtype), rng.standard_normal((batch, count, 64)).astype(dtype)


def queries(rng, heads, count, dtype=np.float16, batch=BATCH):
    """Return queries of both parts, [batch, heads, count, 576]."""
    return rng.standard_normal((batch, heads, count, 576)).astype(dtype)


def cache_of(capacity=300, device="cpu", **others):
    """Return a cache, by default in host memory."""
    return LatentKVCache(BATCH, capacity, device=device, **others)


def everything(cache):
    """Return copies of all memory of a cache."""
    return [cache.lengths, *[x.copy() for x in cache._memory.arrays()]]
