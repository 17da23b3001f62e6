"""Rotary embedding in `append` and `attend`: the same as turning keys and queries before."""

import numpy as np
import pytest
from kv_cases import (
    FORMATS,
    HEADS,
    assert_same_contents,
    assert_unchanged,
    cache_of,
    everything,
    tokens,
)

import cuattn
from cuattn import Rope
from cuattn.errors import ArgumentError, KeywordError
from cuattn.reference.rope import rope

BATCH, CAPACITY = 3, 80
FORMAT = FORMATS["8-rotated"]


def tables(rope_dim, positions=CAPACITY, dtype=np.float32):
    angles = np.outer(np.arange(positions), 100.0 ** -(np.arange(0, rope_dim, 2) / rope_dim))
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def spans(first, n):
    return np.asarray(first)[:, None] + np.arange(n)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rope_dim", [2, 24, 64])
def test_turns_pairs_as_the_formula_says(rng, interleaved, rope_dim):
    x = rng.standard_normal((2, 3, 5, 64)).astype(np.float32)
    cos, sin = tables(rope_dim)
    positions = rng.integers(0, CAPACITY, (2, 5))
    found = rope(x, cos, sin, positions, interleaved=interleaved)
    for i in range(rope_dim // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + rope_dim // 2)
        c, s = cos[positions, i][:, None], sin[positions, i][:, None]
        pair = (x[..., a].astype(np.complex128) + 1j * x[..., b]) * (c + 1j * s)
        np.testing.assert_allclose(found[..., a], pair.real, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[..., b], pair.imag, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[..., rope_dim:], x[..., rope_dim:])


def test_both_conventions_are_those_of_models(rng):
    x = rng.standard_normal((1, 1, 4, 64)).astype(np.float32)
    cos, sin = tables(64, 4)
    half = np.concatenate([-x[..., 32:], x[..., :32]], axis=3)  # rotate_half of Llama
    wanted = x * np.tile(cos, 2) + half * np.tile(sin, 2)
    at = np.arange(4)[None]
    np.testing.assert_array_equal(rope(x, cos, sin, at), wanted)
    order = np.arange(64).reshape(2, 32).T.ravel()
    found = rope(x[..., order], cos, sin, at, interleaved=True)
    np.testing.assert_array_equal(found, wanted[..., order])


def test_positions_that_tables_lack_are_nan(rng):
    x = rng.standard_normal((1, 1, 3, 16)).astype(np.float16)
    found = rope(x, *tables(8, 5), np.array([[4, 5, -1]]))
    assert np.isnan(found).sum(axis=3).tolist() == [[[0, 8, 8]]]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_is_the_same_as_turning_before(rng, kind, interleaved):
    kv_format = FORMATS[kind]
    rope_dim = kv_format.head_dim // 2 // 2 * 2 - 8 * interleaved
    cos, sin = tables(rope_dim)
    k, v = tokens(rng, BATCH, HEADS, 60, kv_format.head_dim)
    found, wanted = cache_of(kv_format), cache_of(kv_format)
    for begin, end, counts in ((0, 20, None), (20, 21, None), (21, 60, [39, 0, 7])):
        at = spans(found.lengths, end - begin)
        part = slice(begin, end)
        turned = rope(k[:, :, part], cos, sin, at, interleaved=interleaved)
        found.append(k[:, :, part], v[:, :, part], counts=counts, rope=Rope(cos, sin, interleaved))
        wanted.append(turned, v[:, :, part].astype(np.float32), counts=counts)
    assert_same_contents(found, wanted)
    q = rng.standard_normal((BATCH, 3 * HEADS, 2, kv_format.head_dim)).astype(np.float32)
    turned = rope(q, cos, sin, spans(found.lengths - 2, 2), interleaved=interleaved)
    o = found.attend(q, rope=Rope(cos, sin, interleaved))
    np.testing.assert_array_equal(o, wanted.attend(turned))


def test_positions_may_be_the_callers(rng):
    k, v = tokens(rng, BATCH, HEADS, 6, 64, np.float32)
    cos, sin = tables(32, 200)
    positions = rng.integers(0, 200, (BATCH, 6))
    found, wanted = cache_of(FORMAT), cache_of(FORMAT)
    found.append(k, v, rope=Rope(cos, sin), positions=positions)
    wanted.append(rope(k, cos, sin, positions), v)
    assert_same_contents(found, wanted)
    turned = rope(k, cos, sin, positions)
    o = found.attend(k, rope=Rope(cos, sin), positions=positions.tolist())
    np.testing.assert_array_equal(o, wanted.attend(turned))


def test_tokens_keep_their_positions_where_others_are_evicted(rng):
    k, v = tokens(rng, BATCH, HEADS, 60, 64, np.float32)
    cos, sin = tables(64)
    options = {"page_size": 16, "window": 20}
    found, wanted = cache_of(FORMAT, **options), cache_of(FORMAT, **options)
    for n in range(0, 60, 5):
        part = slice(n, n + 5)
        found.append(k[:, :, part], v[:, :, part], rope=Rope(cos, sin))
        at = spans([n] * BATCH, 5)
        wanted.append(rope(k[:, :, part], cos, sin, at), v[:, :, part])
    assert found.lengths.max() < 60
    assert_same_contents(found, wanted)
    o = found.attend(k[:, :, -1:], rope=Rope(cos, sin))
    turned = rope(k[:, :, -1:], cos, sin, spans([59] * BATCH, 1))
    np.testing.assert_array_equal(o, wanted.attend(turned))


def test_queries_before_the_first_token_and_many_queries(rng):
    k, v = tokens(rng, BATCH, HEADS, 3, 64, np.float32)
    cos, sin = tables(64)
    cache = cache_of(FORMAT)
    cache.append(k, v, rope=Rope(cos, sin))
    q = rng.standard_normal((BATCH, HEADS, 1030, 64)).astype(np.float32)
    o = cache.attend(q, rope=Rope(cos, sin))
    assert not o[:, :, :-3].any()
    assert o[:, :, -3:].any()
    few = cache.attend(q[:, :, -3:], rope=Rope(cos, sin))
    np.testing.assert_allclose(o[:, :, -3:], few, atol=0.05)  # decoded, with scales of its own


WRONG = (
    ({"rope": (1, 2)}, "rope .* a cuattn.Rope"),
    ({"positions": [[0]]}, "positions .*None without rope"),
    ({"rope": Rope(*tables(64), interleaved=1)}, "rope.interleaved"),
    ({"rope": Rope(*tables(66))}, "rope.cos.shape"),
    ({"rope": Rope(tables(64)[0], tables(32)[1])}, "rope.sin.shape"),
    ({"rope": Rope(*tables(64, dtype=np.float64))}, "rope.cos.dtype.*float32 or float16"),
    ({"rope": Rope(*tables(64, 0))}, "rope.cos.shape"),
    ({"rope": Rope(*tables(64, 21))}, "rope.cos.shape .*of 22 positions at least"),
    ({"rope": Rope(*tables(64)), "positions": [[0], [80], [1]]}, "positions .*from 0 to 79"),
    ({"rope": Rope(*tables(64)), "positions": [[0], [-1], [1]]}, "positions"),
    ({"rope": Rope(*tables(64)), "positions": [0, 1, 2]}, "positions"),
    ({"rope": Rope(*tables(64)), "positions": np.zeros((3, 1))}, "positions"),
)


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_tables_and_positions_change_nothing(rng, given, message):
    cache = cache_of(FORMAT)
    k, v = tokens(rng, BATCH, HEADS, 21, 64)
    cache.append(k, v)
    before = everything(cache)
    with pytest.raises(ArgumentError, match=message):
        cache.append(k[:, :, :1], v[:, :, :1], **given)
    assert_unchanged(cache, before)
    if "22" not in message:  # the last query stands beside token 20
        with pytest.raises(ArgumentError, match=message):
            cache.attend(k[:, :, :1], **given)


def test_other_names_are_told(rng):
    k, v = tokens(rng, BATCH, HEADS, 1, 64)
    with pytest.raises(KeywordError):
        cache_of(FORMAT).append(k, v, rotary_cos=1)
    assert cuattn.Rope is Rope
