"""Sequences of a KV cache that lose pages, on request or because a window moves on."""

import numpy as np
import pytest
from kv_cases import FORMATS, assert_unchanged, everything, options, tokens
from kv_moves_cases import PAGED, filled, free_pages

from cuattn import ArgumentError, KVCache, UnsupportedError


@pytest.mark.parametrize("kv_format", [FORMATS["8"], FORMATS["nested"]], ids=["8", "nested"])
def test_what_remains_of_evicted_pages_is_attended(device, rng, kv_format):
    others = {"first": 16, "recent": 16} if kv_format.nested else {}
    cache = filled(rng, device, kv_format, (70, 60, 21), **PAGED, **others)
    k, v = cache.gather("float32")
    cache.evict(0, [3, 1])
    assert cache.lengths.tolist() == [38, 60, 21]
    assert cache.positions.tolist() == [70, 60, 21]
    left = np.r_[0:16, 32:48, 64:70]
    found = cache.gather("float32")
    np.testing.assert_array_equal(found[0][0, :, :38], k[0][:, left])
    np.testing.assert_array_equal(found[1][0, :, :38], v[0][:, left])
    np.testing.assert_array_equal(found[0][1, :, :60], k[1, :, :60])
    q = tokens(rng, 3, 2, 1, 64)[0]
    s = (q[0].astype(float) @ found[0][0, :, :38].swapaxes(1, 2)) / 8
    p = np.exp(s - s.max(axis=2, keepdims=True))
    wanted = p @ found[1][0, :, :38] / p.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(cache.attend(q)[0], wanted, atol=0.05)


def test_distances_across_what_is_gone_are_refused(device, rng):
    cache = filled(rng, device, **PAGED)
    q = tokens(rng, 3, 2, 1, 64)[0]
    cache.evict(0, [0])
    # What is left follows on each other.
    cache.attend(q, window_size=(8, 0), alibi_slopes=np.ones(2, np.float32))
    cache.evict(0, [1])
    for options_, name in (
        ({"window_size": (8, 0)}, "window_size"),
        ({"alibi_slopes": np.ones(2, np.float32)}, "alibi_slopes"),
    ):
        with pytest.raises(UnsupportedError, match=f"{name} counts tokens, of which sequence 0"):
            cache.attend(q, **options_)
    cache.attend(q, window_size=(-1, 0), softcap=5.0)
    cache.fork(1, 0)
    cache.attend(q, window_size=(8, 0))


def test_a_sequence_is_not_shortened_to_where_its_position_is_unknown(device, rng):
    cache = filled(rng, device, **PAGED)
    cache.evict(0, [1])
    before = everything(cache)
    with pytest.raises(ArgumentError, match="0 or more than 16 for sequence 0, behind whose first"):
        cache.truncate([16, 0, 21])
    assert_unchanged(cache, before)
    cache.truncate([17, 0, 21])
    assert cache.positions.tolist() == [33, 0, 21]
    cache.truncate([0, 0, 21])
    assert cache.positions.tolist() == [0, 0, 21]


@pytest.mark.parametrize(("sinks", "kept_sinks"), [(0, 0), (4, 16), (17, 32)])
def test_a_window_keeps_the_newest_tokens_and_the_first(device, rng, sinks, kept_sinks):
    kv_format = FORMATS["8"]
    cache = KVCache(
        *(1, 2, 64, 100),
        **options(kv_format),
        device=device,
        page_size=16,
        window=20,
        sink_tokens=sinks,
    )
    k, v = tokens(rng, 1, 2, 300, 64)
    at = 0
    while at < 300:
        count = min(1 + at % 7, 300 - at)
        cache.append(k[:, :, at : at + count], v[:, :, at : at + count])
        first = max((at - 19) // 16 * 16, kept_sinks)
        at += count
        left = np.r_[0 : min(kept_sinks, at), first:at]
        assert cache.lengths.tolist() == [len(left)]
        assert cache.positions.tolist() == [at]
        found = cache.gather("float32")[1][0]
        np.testing.assert_allclose(found, v[0][:, left], atol=0.05)
    assert free_pages(cache) >= 2


def test_a_window_of_nested_codes_keeps_their_first_tokens(device, rng):
    cache = KVCache(1, 2, 64, 400, bits=4, device=device, page_size=32, window=64)
    for _ in range(10):
        cache.append(*tokens(rng, 1, 2, 50, 64))
    assert cache.page_table[0, 0] == 0
    assert cache.positions.tolist() == [500]
    assert cache.lengths.tolist() == [32 + 500 - 384]
    with pytest.raises(ArgumentError, match="behind the first 16 tokens, which keep 8 bits"):
        cache.evict(0, [0])


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"window": 20}, "window"),
        ({"window": 0, "page_size": 16}, "window"),
        ({"window": 20.0, "page_size": 16}, "window"),
        ({"sink_tokens": 4, "page_size": 16}, "sink_tokens"),
        ({"sink_tokens": -4, "page_size": 16, "window": 20}, "sink_tokens"),
        ({"sink_tokens": 33, "page_size": 16, "window": 20}, "capacity"),
    ],
)
def test_windows_that_cannot_be_are_refused(given, argument):
    with pytest.raises(ArgumentError) as error:
        KVCache(3, 2, 64, 80, device="cpu", **given)
    assert error.value.argument == argument


def test_a_window_takes_no_pages_of_the_caller(rng):
    cache = filled(rng, **PAGED, window=20)
    with pytest.raises(ArgumentError, match="a cache without a window"):
        cache.set_page_table(cache.page_table)
