"""`KVCache.attend` of many rows in host memory: codes of sorted keys, made of a cache's."""

from itertools import pairwise

import numpy as np
import pytest
from kv_cases import FORMATS, HEADS, cache_of, tokens

from cuattn import Rope
from cuattn.errors import ArgumentError
from cuattn.kv.rows import MANY_ROWS, longest
from cuattn.reference.decode import decode
from cuattn.reference.exact import attention as exact
from cuattn.reference.kv_cache import fine_units
from cuattn.reference.kv_operands import sorted_operands

BATCH, CAPACITY = 3, 300
# Queries of four heads, two of which share one of K and V, that are just many.
MANY = MANY_ROWS // 2


@pytest.fixture(params=FORMATS)
def kv_format(request):
    return FORMATS[request.param]


def filled(rng, kv_format, pieces=(300,), counts=(300, 0, 131), **others):
    """Return a cache that sequences came to in pieces, and what they are."""
    k, v = tokens(rng, BATCH, HEADS, CAPACITY, kv_format.head_dim)
    cache = cache_of(kv_format, BATCH, CAPACITY, **others)
    at = 0
    for n in pieces:
        there = np.clip(np.array(counts) - at, 0, n)
        cache.append(k[:, :, at : at + n], v[:, :, at : at + n], counts=there)
        at += n
    return cache, k, v


def queries(rng, head_dim, rows=MANY, dtype=np.float16):
    return rng.standard_normal((BATCH, 2 * HEADS, rows, head_dim)).astype(dtype)


def contents(cache, b):
    """K and V of a sequence as their codes stand for them, but for what rotates them back."""
    k, v = (x.of_sequence(b) for x in cache.codes())
    length, fine, memory = int(cache.lengths[b]), None, cache._memory
    if cache.format.nested:
        first = memory.geometry.first_units
        fine = np.repeat(fine_units(length, int(memory.coarse[b]), first), 16)
    bits = {"k_bits": cache.format.k_bits, "v_bits": cache.format.v_bits}
    return k, v, length, sorted_operands(k, v, length, **bits, is_fine=fine)


@pytest.mark.parametrize("pieces", [(300,), (5, 200, 95)], ids=["at once", "after few"])
def test_codes_stand_for_what_the_cache_has(rng, kv_format, pieces):
    cache, _, _ = filled(rng, kv_format, pieces)
    for b in (0, 2):
        *given, length, made = contents(cache, b)
        for x, y in zip(given, made, strict=True):
            wanted = x.dequantize()[:, :, :length]
            # Half a step of each channel, which a rotation leaves as the root of their mean square.
            found = y.dequantize()[..., : kv_format.head_dim]
            error = np.sqrt(((found - wanted) ** 2).mean(axis=3))
            assert (error <= 0.51 * y.scale).all()
            # No code is cut off, and some of each block reach the end of the range.
            assert np.abs(y.codes).max() >= 126


def test_codes_of_one_scale_stay_as_they_are(rng):
    x = rng.integers(-127, 128, (3, HEADS, 128, 64)).astype(np.float16)
    x[..., 0] = 127
    cache = cache_of(capacity=128, smooth_k=False)
    cache.append(x, x)
    k, v, _, made = contents(cache, 0)
    for given, y in zip((k, v), made, strict=True):
        np.testing.assert_array_equal(given.codes, y.codes)
        assert (y.scale == 1).all()


def test_is_close_to_decoding_and_to_exact_attention(rng, kv_format):
    cache, _, _ = filled(rng, kv_format, (9, 200, 91))
    q = queries(rng, kv_format.head_dim)
    o, lse = cache.attend(q, return_lse=True)
    few, few_lse = decode(q, *cache.codes(), cache.lengths)
    for b, length in enumerate(cache.lengths):
        if not length:
            assert not o[b].any()
            assert (lse[b] == -np.inf).all()
            continue
        k, v = (x.of_sequence(b).dequantize()[:, :, :length] for x in cache.codes())
        wanted, wanted_lse = exact(q[b : b + 1], k, v, is_causal=True)
        size = np.abs(wanted).sum()
        ours, theirs = (np.abs(x[b] - wanted[0]).sum() / size for x in (o, few))
        assert ours < 1.5 * theirs + 0.02
        seen = np.isfinite(wanted_lse[0])
        np.testing.assert_array_equal(np.isfinite(lse[b]), seen)
        np.testing.assert_allclose(lse[b][seen], wanted_lse[0][seen], atol=0.1)
        np.testing.assert_allclose(lse[b][seen], few_lse[b][seen], atol=0.1)


def test_rows_that_see_nothing_are_zero(rng):
    cache, _, _ = filled(rng, FORMATS["8"], counts=(40, 0, 300))
    q = queries(rng, 64)
    sinks = rng.standard_normal(2 * HEADS).astype(np.float32)
    o, lse = cache.attend(q, return_lse=True, sinks=sinks)
    assert not o[0, :, : MANY - 40].any()
    np.testing.assert_array_equal(lse[0, :, : MANY - 40], np.repeat(sinks[:, None], MANY - 40, 1))
    assert o[0, :, MANY - 40 :].any(axis=-1).all()
    assert not o[1].any()


OPTIONS = {
    "plain": {},
    "all": {"is_causal": False},
    "window": {"window_size": (50, 3), "is_causal": False},
    "softcap and slopes": {"softcap": 5.0, "alibi_slopes": np.float32([[1, 2, 3, 4]] * 3) / 8},
    "sinks": {"sinks": np.float32([0, 1, 2, -np.inf]), "window_size": (30, 0)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_queries_are_those_of_each_sequence(rng, name):
    cache, _, _ = filled(rng, FORMATS["nested"])
    q, given = queries(rng, 64), OPTIONS[name]
    o, lse = cache.attend(q, return_lse=True, **given)
    rows = [MANY, 17, 0]
    bounds = np.cumsum([0, *rows]).astype(np.int32)
    parts = [x[:, MANY - n :].swapaxes(0, 1) for x, n in zip(q, rows, strict=True)]
    packed = np.concatenate([*parts, q[0, :, :2].swapaxes(0, 1)])
    found, of_rows = cache.attend(packed, cu_seqlens_q=bounds, return_lse=True, **given)
    assert found.shape == packed.shape
    for b, (first, last) in enumerate(pairwise(bounds)):
        wanted = o[b, :, MANY - rows[b] :]
        np.testing.assert_array_equal(found[first:last].swapaxes(0, 1), wanted)
        np.testing.assert_array_equal(of_rows[:, first:last], lse[b, :, MANY - rows[b] :])
    out = np.ones_like(packed)
    assert cache.attend(packed, cu_seqlens_q=bounds, out=out, **given) is out
    np.testing.assert_array_equal(out[: bounds[-1]], found[: bounds[-1]])
    assert (out[bounds[-1] :] == 1).all()
    short = cache.attend(packed, cu_seqlens_q=bounds, max_seqlen_q=100, **given)
    assert short[:100].any()
    assert not short[100:MANY].any()


def test_pages_and_truncation_make_no_difference(rng):
    q, found = queries(rng, 64), []
    state = rng.bit_generator.state
    for page_size in (0, 16):
        rng.bit_generator.state = state
        cache, _, _ = filled(rng, FORMATS["nested"], page_size=page_size)
        cache.truncate([203, 0, 100])
        found.append(cache.attend(q, return_lse=True))
    for x, y in zip(*found, strict=True):
        np.testing.assert_array_equal(x, y)
    assert found[0][0][2, :, -100:].any()
    assert not found[0][0][2, :, :-100].any()


def test_what_makes_no_sense_is_refused(rng):
    cache, _, _ = filled(rng, FORMATS["8"])
    packed = rng.standard_normal((20, 2 * HEADS, 64)).astype(np.float16)
    bounds = np.array([0, 5, 10, 20], np.int32)
    for given, message in (
        ({"max_seqlen_q": 3}, "max_seqlen_q must be None without cu_seqlens_q"),
        ({"cu_seqlens_q": bounds[:3]}, "cu_seqlens_q.shape"),
        ({"cu_seqlens_q": bounds.astype(np.int64)}, "cu_seqlens_q.dtype"),
        ({"cu_seqlens_q": bounds, "max_seqlen_q": -1}, "max_seqlen_q"),
        ({"cu_seqlens_q": bounds, "attn_mask": np.ones((3, 1, 1, 5), bool)}, "attn_mask"),
        ({"cu_seqlens_q": bounds, "layout": "DNH"}, "layout"),
        ({"cu_seqlens_q": bounds, "softcap": -1.0}, "softcap"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cache.attend(packed, **given)
    with pytest.raises(ArgumentError, match=r"q.shape"):
        cache.attend(queries(rng, 64), cu_seqlens_q=bounds)
    with pytest.raises(ArgumentError, match=r"q.shape"):
        cache.attend(packed[..., :32], cu_seqlens_q=bounds)


MASKS = {
    "of all": lambda rng: rng.random((BATCH, 1, MANY, 300)) < 0.6,
    "of some": lambda rng: rng.standard_normal((1, 2 * HEADS, 1, 131)).astype(np.float16),
    "of few": lambda rng: np.where(rng.random((MANY, 20)) < 0.5, np.float32(0), -np.inf),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_of_the_last_tokens(rng, name):
    cache, k, v = filled(rng, FORMATS["8-rotated"])
    q, mask = queries(rng, 64), MASKS[name](rng)
    o, lse = cache.attend(q, attn_mask=mask, return_lse=True)
    columns = mask.shape[-1]
    every = np.broadcast_to(mask, (BATCH, 2 * HEADS, MANY, columns))
    for b, n in ((0, 300), (2, 131)):
        whole = np.full((1, 2 * HEADS, MANY, n), mask.dtype.type(mask.dtype == bool))
        some = min(n, columns)
        whole[..., n - some :] = every[b, ..., columns - some :]
        kv = (x[b : b + 1, :, :n] for x in (k, v))
        wanted, of_rows = exact(q[b : b + 1], *kv, is_causal=True, attn_mask=whole)
        seen = np.isfinite(of_rows[0])
        np.testing.assert_array_equal(np.isfinite(lse[b]), seen)
        np.testing.assert_allclose(lse[b][seen], of_rows[0][seen], atol=0.1)
        assert np.abs(o[b] - wanted[0]).sum() < 0.05 * np.abs(wanted).sum()
    assert not o[1].any()


def test_queries_end_to_end_turn_by_places_that_are_positions(rng):
    cache, _, _ = filled(rng, FORMATS["8-padded"], page_size=16)
    angles = np.outer(np.arange(300), 10.0 ** -np.linspace(0, 3, 20))
    turn = Rope(np.cos(angles), np.sin(angles))
    turn = Rope(*(x.astype(np.float32) for x in (turn.cos, turn.sin)))
    q = rng.standard_normal((7, 2 * HEADS, 80)).astype(np.float16)
    given = {"cu_seqlens_q": np.array([0, 5, 5, 7], np.int32), "rope": turn}
    o = cache.attend(q, **given)
    at = [295, 296, 297, 298, 299, 129, 130]
    np.testing.assert_array_equal(o, cache.attend(q, positions=at, **given))
    for wrong, message in (
        ({"positions": [at]}, "positions"),
        ({"positions": [*at[:6], 300]}, "positions must be from 0 to 299"),
        ({"rope": Rope(turn.cos[:299], turn.sin[:299])}, "rope.cos.shape"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cache.attend(q, **given | wrong)
    cache.evict(0, [1])  # tokens that remain are where they were
    o = cache.attend(q, **given)
    np.testing.assert_array_equal(o, cache.attend(q, positions=at, **given))


def test_few_lengths_have_plans_of_their_own():
    found = {longest(n, 10**6) for n in range(1, 10**5, 7)}
    assert len(found) < 80
    for n in (1, 127, 128, 129, 1000, 4096, 4097, 99_999):
        assert n <= longest(n, 10**6) <= max(n * 9 / 8 + 128, 128)
        assert longest(n, 10**6) % 128 == 0
    assert longest(900, 1000) == 1024
