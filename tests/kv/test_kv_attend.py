"""`KVCache.attend` in host memory, and the arrays of other libraries that it takes."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.foreign import Foreign
from kv_cases import FORMATS, HEADS, assert_unchanged, cache_of, everything, tokens, units_of

import cuattn
from cuattn import KVCache
from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference.decode import decode


@pytest.fixture(params=FORMATS)
def kv_format(request):
    return FORMATS[request.param]


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_attends_as_attention_does(rng, layout):
    # At 8 bits a cache without an offset or a rotation and `attention` quantize alike.
    scheme = replace(PRESETS["int8-token"], smooth_k="none", smooth_v="none", name="as it is")
    k, v = tokens(rng, 2, HEADS, 300, 128)
    q = rng.standard_normal((2, 6, 5, 128)).astype(np.float16)
    if layout == "NHD":
        q, k, v = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v))
    cache = KVCache(2, HEADS, 128, 300, smooth_k=False, rotate=False, device="cpu")
    cache.append(k, v, layout=layout)
    for is_causal in (True, False):
        o, lse = cache.attend(q, is_causal=is_causal, layout=layout, return_lse=True, scale=0.1)
        wanted = cuattn.attention(
            q, k, v, scheme=scheme, is_causal=is_causal, layout=layout, return_lse=True, scale=0.1
        )
        assert o.dtype == np.float16
        assert lse.dtype == np.float32
        np.testing.assert_array_equal(o, wanted[0])
        np.testing.assert_allclose(lse, wanted[1], rtol=1e-6)


def test_attends_as_the_reference_does(rng, kv_format):
    k, v = tokens(rng, 3, HEADS, 40, kv_format.head_dim)
    q = rng.standard_normal((3, 4, 3, kv_format.head_dim)).astype(np.float32)
    cache = cache_of(kv_format, page_size=32)
    cache.append(k, v, counts=[40, 0, 2])
    o, lse = cache.attend(q, return_lse=True)
    expected, of_logits = decode(q, *cache.codes(), cache.lengths)
    np.testing.assert_array_equal(o, expected.astype(np.float32))
    np.testing.assert_array_equal(lse, of_logits.astype(np.float32))
    assert not o[1].any()
    assert (lse[1] == -np.inf).all()


def test_output_goes_where_it_is_wanted(rng):
    k, v = tokens(rng, 3, HEADS, 20, 64)
    q = rng.standard_normal((3, 2, 1, 64)).astype(np.float16)
    cache = cache_of()
    cache.append(k, v)
    memory = np.zeros((3, 2, 1, 128), np.float16)
    out = memory[..., ::2]
    assert cache.attend(q, out=out) is out
    np.testing.assert_array_equal(out, cache.attend(q))
    for wrong, message in (
        (q, "out must be in memory apart from that of q"),
        (np.zeros((3, 2, 2, 64), np.float16), "out.shape"),
        (np.zeros((3, 2, 1, 64), np.float32), "out.dtype"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cache.attend(q, out=wrong)


def test_arrays_of_any_library_are_taken(rng):
    k, v = tokens(rng, 3, HEADS, 20, 64)
    cache, expected = cache_of(), cache_of()
    cache.append(Foreign(k), Foreign(v))
    expected.append(k, v)
    assert_unchanged(cache, everything(expected))
    out = np.zeros((3, HEADS, 1, 64), np.float16)
    cache.attend(Foreign(k[:, :, :1]), out=Foreign(out))
    np.testing.assert_array_equal(out, expected.attend(k[:, :, :1]))
    with pytest.raises(ArgumentError, match=r"at most 60 tokens.*got \(3, 2, 61, 64\)"):
        cache.append(*[Foreign(np.zeros((3, HEADS, 61, 64), np.float16))] * 2)


def test_bfloat16_keeps_its_type(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    k, v = (x.astype(ml_dtypes.bfloat16) for x in tokens(rng, 3, HEADS, 20, 64, np.float32))
    cache, wide = cache_of(), cache_of()
    cache.append(k, v)
    wide.append(k.astype(np.float32), v.astype(np.float32))
    np.testing.assert_array_equal(units_of(cache, 1), units_of(wide, 1))
    q = k[:, :, -1:]
    o = cache.attend(q)
    assert o.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(o, wide.attend(q.astype(np.float32)).astype(ml_dtypes.bfloat16))


def test_finite_results_stay_finite(rng, kv_format):
    k, v = tokens(rng, 1, HEADS, 100, kv_format.head_dim)
    v = (65504 * rng.choice([-1.0, 1.0], v.shape)).astype(np.float16)
    cache = cache_of(kv_format, batch=1, capacity=100)
    cache.append(k, v)
    q = rng.standard_normal((1, 4, 20, kv_format.head_dim)).astype(np.float16)
    o = cache.attend(q, scale=4.0)
    assert np.isfinite(o).all()
    assert np.abs(o).max() == 65504
    beyond, _ = decode(q, *cache.codes(), cache.lengths, scale=4.0)
    assert np.abs(beyond).max() > 65520
