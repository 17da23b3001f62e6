"""`KVCache` in host memory: what it holds, whichever way the tokens came and wherever they lie."""

import numpy as np
import pytest
from kv_cases import FORMATS, HEADS, cache_of, options, tokens, units_of

from cuattn import KVCache
from cuattn.kv.fine import halves, read_fine
from cuattn.kv.units import pack_units
from cuattn.reference.kv_cache import quantize_keys, quantize_nested, quantize_values
from cuattn.reference.kv_offsets import offsets


@pytest.fixture(params=FORMATS)
def kv_format(request):
    return FORMATS[request.param]


def test_units_are_the_references_codes(rng, kv_format):
    k, v = tokens(rng, 3, HEADS, 48, kv_format.head_dim)
    cache = cache_of(kv_format)
    cache.append(k, v)
    vector = offsets(k)
    if kv_format.nested:
        upper, lower = zip(*map(halves, quantize_nested(k, v, kv_format, vector)), strict=True)
        for b in range(3):
            np.testing.assert_array_equal(units_of(cache, b)[0], pack_units(*upper, kv_format)[b])
            fine = read_fine(cache._memory, b, 48)[0]
            np.testing.assert_array_equal(fine, pack_units(*lower, kv_format)[b])
        return
    expected = pack_units(
        quantize_keys(k, kv_format, vector), quantize_values(v, kv_format), kv_format
    )
    for b in range(3):
        np.testing.assert_array_equal(units_of(cache, b)[0], expected[b])
    k_codes, v_codes = cache.codes()
    np.testing.assert_array_equal(k_codes.vector, vector)
    np.testing.assert_array_equal(v_codes.codes, quantize_values(v, kv_format).codes)


@pytest.mark.parametrize("page_size", [0, 32])
def test_appending_in_pieces_is_appending_at_once(rng, kv_format, page_size):
    k, v = tokens(rng, 3, HEADS, 70, kv_format.head_dim)
    whole, pieces = (cache_of(kv_format, page_size=page_size, smooth_k=False) for _ in range(2))
    whole.append(k, v)
    for begin, end in ((0, 5), (5, 6), (6, 16), (16, 33), (33, 70)):
        pieces.append(k[:, :, begin:end], v[:, :, begin:end])
    for b in range(3):
        np.testing.assert_array_equal(units_of(whole, b), units_of(pieces, b))


def test_sequences_grow_each_by_its_own_count(rng, kv_format):
    k, v = tokens(rng, 3, HEADS, 30, kv_format.head_dim)
    cache = cache_of(kv_format, smooth_k=False)
    cache.append(k, v, counts=[30, 0, 7])
    cache.append(k[:, :, 7:20], v[:, :, 7:20], counts=np.array([0, 0, 13]))
    assert cache.lengths.tolist() == [30, 0, 20]
    assert cache.lengths.dtype == np.int32
    assert cache.device_lengths.tolist() == [30, 0, 20]
    alone = cache_of(kv_format, batch=1, smooth_k=False)
    alone.append(k[2:, :, :20], v[2:, :, :20])
    np.testing.assert_array_equal(units_of(cache, 2), units_of(alone, 0))


def test_pages_in_any_order_hold_the_same(rng, kv_format):
    k, v = tokens(rng, 3, HEADS, 75, kv_format.head_dim)
    q = rng.standard_normal((3, 2 * HEADS, 2, kv_format.head_dim)).astype(np.float16)
    plain, paged = cache_of(kv_format), cache_of(kv_format, page_size=16, num_pages=40)
    paged.set_page_table(rng.permutation(40)[:15].reshape(3, 5))
    for begin, end in ((0, 21), (21, 22), (22, 75)):
        for cache in (plain, paged):
            cache.append(k[:, :, begin:end], v[:, :, begin:end], counts=[end - begin, 1, 0])
    for b in range(3):
        np.testing.assert_array_equal(units_of(plain, b), units_of(paged, b))
    results = (cache.attend(q, return_lse=True) for cache in (plain, paged))
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)


def test_truncated_sequences_are_appended_to_again(rng):
    k, v = tokens(rng, 3, HEADS, 40, 64)
    cache, expected = (cache_of(page_size=16, num_pages=9, smooth_k=False) for _ in range(2))
    cache.append(k, v)
    cache.truncate([20, 40, 3])
    assert cache.lengths.tolist() == [20, 40, 3]
    cache.append(v, k, counts=[9, 0, 40 - 3])
    expected.append(k, v, counts=[20, 40, 3])
    expected.append(v, k, counts=[9, 0, 37])
    for x, y in zip(cache.gather("float32"), expected.gather("float32"), strict=True):
        np.testing.assert_array_equal(x, y)


def test_reset_empties(rng):
    k, v = tokens(rng, 3, HEADS, 20, 64)
    cache = cache_of(page_size=16, num_pages=6)
    cache.append(k, v)
    cache.reset()
    assert cache.lengths.tolist() == [0, 0, 0]
    assert (cache.page_table == -1).all()
    assert cache.gather()[0].shape == (3, HEADS, 0, 64)
    cache.append(v, k)
    np.testing.assert_array_equal(cache.codes()[0].vector, offsets(v))


def test_gather_is_near_what_was_appended(rng, kv_format):
    k, v = tokens(rng, 3, HEADS, 33, kv_format.head_dim, np.float32)
    cache = cache_of(kv_format, page_size=16)
    cache.append(k, v, counts=[33, 20, 0])
    for name, x, back in zip("kv", (k, v), cache.gather("float32"), strict=True):
        bits = getattr(kv_format, f"{name}_bits")
        # Half a step of the largest magnitude, which smoothing of K may double.
        step = np.abs(x).max() * 2 / (127 if bits == 8 else 7)
        assert np.abs(back[0] - x[0]).max() <= step
        assert not back[1, :, 20:].any()
        assert not back[2].any()
    for dtype in ("float16", "float32", "bfloat16"):
        assert cache.gather(dtype)[0].dtype.name == dtype
    np.testing.assert_allclose(
        cache.gather("float32")[1], cache.codes()[1].dequantize(), 1e-6, 1e-6
    )


@pytest.mark.parametrize(
    "others",
    [{}, {"smooth_k": False}, {"page_size": 32}, {"page_size": 16, "num_pages": 4}],
    ids=["plain", "unsmoothed", "paged", "few pages"],
)
def test_bytes_are_known_beforehand(kv_format, others):
    cache = cache_of(kv_format, **others)
    given = options(kv_format) | others
    assert KVCache.bytes_needed(3, HEADS, kv_format.head_dim, 80, **given) == cache.nbytes
    assert cache.nbytes == sum(x.nbytes for x in cache._memory.arrays())
    assert cache.bytes_per_token * 80 * 3 == cache_of(kv_format)._memory.units.nbytes
    assert cache.format == kv_format
