"""Formats, tokens and caches in host memory that tests of the KV cache share."""

import numpy as np

from cuattn import KVCache
from cuattn.kv.contents import read_units
from cuattn.kv_format import KVFormat

HEADS = 2

# Every way of quantizing, and every head dimension.
FORMATS = {
    "8": KVFormat(64),
    "8-96": KVFormat(96),
    "4": KVFormat(128, 4, 4),
    "k4": KVFormat(96, 4, 8),
    "v4-zero": KVFormat(256, 8, 4, v_zero=True),
    "4-group32": KVFormat(128, 4, 4, group=32),
    "4-group64-zero": KVFormat(64, 4, 4, group=64, v_zero=True),
    "k4-group32": KVFormat(96, 4, 8, group=32),
    "v4-group32-zero": KVFormat(128, 8, 4, group=32, v_zero=True),
    "8-rotated": KVFormat(64, rotate=True),
    "4-rotated-group32": KVFormat(96, 4, 4, group=32, rotate=True),
    "nested": KVFormat(64, 4, 4, group=64, rotate=True, nested=True),
    "nested-96": KVFormat(96, 4, 4, rotate=True, nested=True),
    "nested-256": KVFormat(256, 4, 4, group=64, nested=True),
    "8-padded": KVFormat(80, rotate=True),
    "4-padded-group32-zero": KVFormat(48, 4, 4, group=32, v_zero=True),
    "nested-padded": KVFormat(112, 4, 4, group=64, rotate=True, nested=True),
}


def options(kv_format):
    """Return the format as arguments of `KVCache`."""
    names = ("k_bits", "v_bits", "group", "v_zero", "rotate", "nested")
    return {name: getattr(kv_format, name) for name in names}


def tokens(rng, batch, heads, count, head_dim, dtype=np.float16):
    """Return keys with a mean and values, [batch, heads, count, head_dim]."""
    k = rng.standard_normal((batch, heads, count, head_dim)) + rng.standard_normal(head_dim)
    return k.astype(dtype), rng.standard_normal(k.shape).astype(dtype)


def cache_of(kv_format=FORMATS["8"], batch=3, capacity=80, **others):
    """Return a cache, by default in host memory."""
    given = options(kv_format) | {"device": "cpu"} | others
    return KVCache(batch, HEADS, kv_format.head_dim, capacity, **given)


def units_of(cache, sequence):
    """All units with tokens of a sequence, wherever they are, in one piece."""
    length = int(cache.lengths[sequence])
    return read_units(cache._memory, sequence, 0, -(-length // 16))


def everything(cache):
    """Return copies of all memory of a cache."""
    return [cache.lengths, *[x.copy() for x in cache._memory.arrays()]]


def assert_unchanged(cache, before):
    """Hold a cache to what `everything` has returned."""
    for x, y in zip(everything(cache), before, strict=True):
        np.testing.assert_array_equal(x, y)


def filled(rng, kv_format=FORMATS["4-group64-zero"], **others):
    """Return a cache with sequences of 50, 0 and 21 tokens."""
    cache = cache_of(kv_format, **others)
    cache.append(*tokens(rng, 3, HEADS, 50, kv_format.head_dim), counts=[50, 0, 21])
    return cache


def assert_same_contents(cache, expected):
    """The same lengths and codes, wherever they are."""
    np.testing.assert_array_equal(cache.lengths, expected.lengths)
    for x, y in zip(cache.codes(), expected.codes(), strict=True):
        for part in ("codes", "scale", "zero", "vector"):
            np.testing.assert_array_equal(getattr(x, part), getattr(y, part))
