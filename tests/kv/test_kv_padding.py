"""Head dimensions that the kernels of a cache pad: what they cost, and what they do not."""

import numpy as np
import pytest
from kv_cases import cache_of

from cuattn.kv_format import KV_HEAD_DIMS, KVFormat, padded_head_dim
from cuattn.reference import exact
from cuattn.reference.kv_cache import quantize_keys, quantize_values

PADDED = {16: 64, 48: 64, 80: 96, 112: 128, 144: 256, 240: 256}


@pytest.mark.parametrize("head_dim", range(16, 257, 16))
def test_units_have_the_next_size_of_the_kernels(head_dim):
    padded = min(size for size in KV_HEAD_DIMS if size >= head_dim)
    assert padded_head_dim(head_dim) == KVFormat(head_dim).padded == padded
    assert KVFormat(head_dim).unit_bytes == KVFormat(padded).unit_bytes
    cache = cache_of(KVFormat(head_dim))
    # The codes of K and V of two heads, and a float32 scale of each.
    assert cache.bytes_per_token == 2 * 2 * (padded + 4)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("head_dim", [80, 112, 176])
def test_attention_is_that_of_the_tokens(rng, head_dim, rotate):
    k, v = rng.standard_normal((2, 1, 2, 90, head_dim), np.float32)
    q = rng.standard_normal((1, 4, 2, head_dim), np.float32)
    cache = cache_of(KVFormat(head_dim, rotate=rotate), batch=1, capacity=90)
    cache.append(k, v)
    o, lse = cache.attend(q, return_lse=True)
    wanted, wanted_lse = exact.attention(q, k, v, is_causal=True, scale=head_dim**-0.5)
    assert o.shape == q.shape
    np.testing.assert_allclose(o, wanted, atol=0.03)
    np.testing.assert_allclose(lse, wanted_lse, atol=0.02)


@pytest.mark.parametrize("head_dim", [80, 112])
def test_a_rotation_of_padded_keys_costs_no_accuracy(rng, head_dim):
    # A channel with outliers, as trained models have it.
    k = rng.standard_normal((1, 1, 400, head_dim))
    k[..., 3] *= 20
    errors = []
    for size in (head_dim, padded_head_dim(head_dim)):
        x = np.zeros((*k.shape[:3], size))
        x[..., :head_dim] = k
        found = quantize_keys(x, KVFormat(size, rotate=True)).dequantize()[..., :head_dim]
        errors.append(np.abs(found - k).mean())
    plain = np.abs(quantize_keys(k, KVFormat(head_dim)).dequantize() - k).mean()
    assert errors[0] == errors[1] < plain / 2


@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("head_dim", [48, 80, 112])
def test_zeros_widen_no_range_of_values(rng, head_dim, group):
    v = rng.uniform(5, 6, (1, 1, 64, head_dim))
    cached = quantize_values(v, KVFormat(head_dim, 8, 4, group=group, v_zero=True))
    # Half a step of a range of 1; one that begins at 0 has steps of 6 / 15.
    assert np.abs(cached.dequantize() - v).max() < 0.5 / 15 + 1e-3


@pytest.mark.parametrize("head_dim", PADDED)
def test_contents_have_the_callers_channels(rng, head_dim):
    k, v = rng.standard_normal((2, 3, 2, 20, head_dim), np.float32)
    cache = cache_of(KVFormat(head_dim, rotate=True))
    cache.append(k, v)
    for found, coded, x in zip(cache.gather("float32"), cache.codes(), (k, v), strict=True):
        assert found.shape == x.shape == coded.dequantize().shape
        assert coded.codes.shape[3] == PADDED[head_dim]
        np.testing.assert_allclose(found, coded.dequantize(), atol=1e-5)
        np.testing.assert_allclose(found, x, atol=0.05)
