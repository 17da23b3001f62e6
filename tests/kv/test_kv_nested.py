"""Caches whose first and newest tokens have 8 bits and whose others have 4."""

import numpy as np
import pytest
from kv_cases import HEADS, assert_same_contents, tokens

from cuattn import ArgumentError, KVCache
from cuattn.kv_format import KV_HEAD_DIMS
from cuattn.reference.kv_cache import kept, quantize_nested
from cuattn.reference.kv_offsets import offsets
from cuattn.reference.rotation import rotate

SIZES = {"bits": 4, "device": "cpu"}


def cache_of(batch=1, capacity=400, head_dim=64, **options):
    few = {"recent": 128} if (SIZES | options)["bits"] == 4 else {}
    return KVCache(batch, HEADS, head_dim, capacity, **(SIZES | few | options))


def is_fine(cache, b=0):
    """Which tokens of a sequence have codes of 8 bits, by their codes of V alone."""
    codes = cache.codes()[1].codes[b, :, : cache.lengths[b]]
    return (codes % 16 != 0).any(axis=(0, 2))


def alone(*fine, length):
    """Return a mask of tokens with those of some ranges."""
    mask = np.zeros(length, bool)
    for begin, end in fine:
        mask[begin:end] = True
    return mask


@pytest.mark.parametrize("page_size", [0, 16, 64])
@pytest.mark.parametrize("pieces", [[300], [1] * 40 + [260], [130, 1, 1, 168], [16] * 18 + [12]])
def test_the_first_and_the_newest_have_8_bits(rng, page_size, pieces):
    """The last 128 of 300 begin in unit 10; 9 units are kept, of 19 these are 10 to 18."""
    k, v = tokens(rng, 1, HEADS, 300, 64)
    cache, at = cache_of(page_size=page_size, smooth_k=False), 0
    for count in pieces:
        cache.append(k[:, :, at : at + count], v[:, :, at : at + count])
        at += count
    fine = alone((0, 16), (160, 300), length=300)
    np.testing.assert_array_equal(is_fine(cache), fine)
    wanted = [kept(x, fine[None]) for x in quantize_nested(k, v, cache.format)]
    for found, x in zip(cache.codes(), wanted, strict=True):
        for part in ("codes", "scale", "zero"):
            np.testing.assert_array_equal(getattr(found, part), getattr(x, part))


@pytest.mark.parametrize(
    ("first", "recent", "fine"),
    [
        (0, 0, []),
        (32, 0, [(0, 32)]),
        (0, 16, [(176, 200)]),
        (16, 48, [(0, 16), (144, 200)]),
        (0, 400, [(0, 200)]),
        (400, 400, [(0, 200)]),
    ],
)
def test_how_many_is_an_option(rng, first, recent, fine):
    cache = cache_of(first=first, recent=recent)
    cache.append(*tokens(rng, 1, HEADS, 200, 64))
    np.testing.assert_array_equal(is_fine(cache), alone(*fine, length=200))


def test_sequences_have_their_own(rng):
    cache = cache_of(3)
    cache.append(*tokens(rng, 3, HEADS, 390, 64), counts=[390, 0, 170])
    cache.append(*tokens(rng, 3, HEADS, 9, 64), counts=[1, 9, 3])
    np.testing.assert_array_equal(is_fine(cache, 0), alone((0, 16), (256, 391), length=391))
    assert is_fine(cache, 1).all()
    np.testing.assert_array_equal(is_fine(cache, 2), alone((0, 16), (32, 173), length=173))


def test_what_has_lost_bits_does_not_get_them_back(rng):
    cache = cache_of()
    cache.append(*tokens(rng, 1, HEADS, 300, 64))
    before = cache.codes()
    cache.truncate([165])
    np.testing.assert_array_equal(is_fine(cache), alone((0, 16), (160, 165), length=165))
    cache.truncate([150])
    assert is_fine(cache).sum() == 16
    cache.append(*tokens(rng, 1, HEADS, 30, 64))
    # What comes into a unit with older tokens is like these; units behind it are new.
    np.testing.assert_array_equal(is_fine(cache), alone((0, 16), (160, 180), length=180))
    for x, y in zip(cache.codes(), before, strict=True):
        np.testing.assert_array_equal(x.codes[:, :, :150], y.codes[:, :, :150])
    cache.reset()
    cache.append(*tokens(rng, 1, HEADS, 100, 64))
    assert is_fine(cache).all()


@pytest.mark.parametrize("head_dim", KV_HEAD_DIMS)
def test_bits_of_an_element(head_dim):
    """All scales, zero points and lower halves of 8192 tokens, and all that there is."""
    elements = 2 * HEADS * head_dim * 8192
    assert 8 * KVCache.bytes_needed(1, HEADS, head_dim, 8192, **SIZES) / elements <= 4.7
    assert 8 * KVCache.bytes_needed(1, HEADS, head_dim, 256, **SIZES) / (elements / 32) <= 9.1


def test_errors_by_age(rng):
    k, v = tokens(rng, 1, HEADS, 390, 128, np.float32)
    cache = cache_of(head_dim=128)
    cache.append(k, v)
    fine = is_fine(cache)
    for x, back in zip((k, v), cache.gather("float32"), strict=True):
        of_token = np.abs(back - x).mean(axis=(0, 1, 3))
        assert of_token[fine].max() < 0.012
        assert 0.05 < of_token[~fine].min() < of_token[~fine].max() < 0.13


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("pieces", [[1] * 200, [1, 199], [200], [5, 20, 175]])
def test_a_first_key_like_no_other_does_no_harm(rng, bits, pieces):
    k, v = tokens(rng, 1, HEADS, 200, 64, np.float32)
    with_outlier = k.copy()
    with_outlier[:, :, 0] = 100
    errors = []
    for keys in (k, with_outlier):
        cache, at = cache_of(bits=bits), 0
        for count in pieces:
            cache.append(keys[:, :, at : at + count], v[:, :, at : at + count])
            at += count
        back = cache.gather("float32")[0]
        errors.append(np.abs(back - keys)[:, :, 1:].mean())
        assert np.abs(back - keys)[:, :, 0].max() < 4  # of 8 bits, rotated: 800 in one channel
    assert errors[1] == errors[0]


def test_offsets_are_the_mean_of_all_but_the_first_four(rng):
    k, v = tokens(rng, 2, HEADS, 150, 64, np.float32)
    at_once, in_pieces = cache_of(2), cache_of(2)
    at_once.append(k, v, counts=[150, 3])
    for begin, end in ((0, 2), (2, 7), (7, 128), (128, 150)):
        in_pieces.append(k[:, :, begin:end], v[:, :, begin:end])
    vector = at_once.codes()[0].vector
    np.testing.assert_allclose(vector[0], k[0, :, 4:].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(in_pieces.codes()[0].vector[0], vector[0], atol=1e-6)
    assert not vector[1].any()
    at_once.append(k + 5, v)
    np.testing.assert_array_equal(at_once.codes()[0].vector[0], vector[0])
    np.testing.assert_allclose(
        at_once.codes()[0].vector[1], k[1, :, 1:].mean(axis=1) + 5, atol=1e-5
    )
    np.testing.assert_array_equal(vector, offsets(k, [150, 3]))


def test_rotated_channels_with_outliers_cost_less(rng):
    k, v = tokens(rng, 1, HEADS, 300, 128, np.float32)
    k[..., 7] *= 30
    q = rng.standard_normal((1, HEADS, 1, 128), np.float32)
    errors = []
    for turned in (False, True):
        cache = cache_of(head_dim=128, rotate=turned)
        cache.append(k, v)
        wanted = q @ k.swapaxes(2, 3)
        errors.append(np.abs(q @ cache.gather("float32")[0].swapaxes(2, 3) - wanted).mean())
    assert errors[1] < 0.5 * errors[0]
    np.testing.assert_allclose(rotate(q) @ rotate(k).swapaxes(2, 3), wanted, atol=1e-3)


def test_files_keep_both_halves(rng, tmp_path):
    pytest.importorskip("safetensors")
    cache, path = cache_of(3, page_size=16), tmp_path / "cache.safetensors"
    cache.append(*tokens(rng, 3, HEADS, 390, 64), counts=[390, 0, 30])
    cache.truncate([380, 0, 30])
    cache.save(path)
    loaded = KVCache.load(path, "cpu")
    assert_same_contents(loaded, cache)
    for one in (cache, loaded):
        one.append(*tokens(np.random.default_rng(1), 3, HEADS, 20, 64))
    assert_same_contents(loaded, cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nested": True, "bits": 8}, "nested must be False, unless K and V have 4 bits"),
        ({"nested": True, "v_zero": True}, "nested must be False"),
        ({"nested": 1}, "nested"),
        ({"first": 8}, "first must be a multiple of 16 from 0 to 65536, got 8"),
        ({"recent": -16}, "recent must be a multiple of 16"),
        ({"recent": 16, "bits": 8}, "recent must be 0, unless codes are nested"),
        ({"rotate": 1}, "rotate must be True or False"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        cache_of(**options)
