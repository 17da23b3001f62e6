"""`cuattn.jax` on a GPU: XLA's buffers and stream, without copies, and through host memory."""

from functools import partial

import numpy as np
import pytest

import cuattn

pytestmark = [pytest.mark.gpu, pytest.mark.needs("jax")]


@pytest.fixture
def attend(jax):
    import cuattn.jax

    return cuattn.jax.dot_product_attention


def arrays(jax, rng, dtype, batch=2, rows=300, keys=300):
    sizes = [(rows, 4), (keys, 2), (keys, 2)]
    made = (rng.standard_normal((batch, *some, 64), np.float32) for some in sizes)
    return [jax.numpy.asarray(x, dtype) for x in made]


def equal(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(*(np.asarray(x).view(np.uint8) for x in (found, expected)))


@pytest.mark.parametrize("way", ["ffi", "callback"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scheme", ["int8", "int8-block", "fp16"])
def test_bits_are_those_of_attention(jax, attend, rng, way, dtype, scheme):
    q, k, v = arrays(jax, rng, dtype)
    options = {"is_causal": True, "scheme": scheme}
    expected = cuattn.attention(q, k, v, layout="NHD", **options, return_lse=True)
    called = partial(attend, implementation=way, return_residual=True, **options)
    for _ in range(3):
        o, lse = jax.jit(called)(q, k, v)
        equal(o, expected[0])
        equal(lse.swapaxes(1, 2), expected[1])
    assert o.devices() == q.devices()


@pytest.mark.parametrize("way", ["ffi", "callback"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rules_are_those_of_jax(jax, attend, rng, way, dtype):
    q, k, v = arrays(jax, rng, dtype)
    bias = jax.numpy.asarray(rng.standard_normal((1, 1, 300, 300), np.float32), dtype)
    lengths = jax.numpy.array([120, 300], "int32")
    for options in (
        {"local_window_size": (40, 3)},
        {"key_value_seq_lengths": lengths},
        {"is_causal": True, "key_value_seq_lengths": lengths, "query_seq_lengths": lengths},
        {"bias": bias, "mask": jax.numpy.tril(jax.numpy.ones((300, 300), bool))},
    ):
        exact = np.asarray(jax.nn.dot_product_attention(q, k, v, **options).astype("float32"))
        found = attend(q, k, v, **options, implementation=way, scheme="fp16").astype("float32")
        np.testing.assert_allclose(np.asarray(found), exact, atol=0.02)


@pytest.mark.parametrize("way", ["ffi", "callback"])
def test_mapped_and_scanned_calls_are_the_same(jax, attend, rng, way):
    q, k, v = arrays(jax, rng, "bfloat16", batch=6)
    called = partial(attend, implementation=way)
    expected = cuattn.attention(q, k, v, layout="NHD")
    split = [x.reshape(3, 2, *x.shape[1:]) for x in (q, k, v)]
    equal(jax.jit(jax.vmap(called))(*split).reshape(q.shape), expected)
    bias = jax.numpy.asarray(rng.standard_normal((3, 1, 1, 1, 300), np.float32), "bfloat16")
    mapped = jax.vmap(lambda q, k, v, bias: called(q, k, v, bias))(*split, bias)
    for i in range(3):
        options = {"attn_mask": bias[i], "layout": "NHD"}
        equal(mapped[i], cuattn.attention(*(x[i] for x in split), **options))

    @jax.jit
    def scanned(q, k, v):
        return jax.lax.scan(lambda x, _: (called(x, k, v), None), q, None, length=3)[0]

    for _ in range(2):
        expected = cuattn.attention(expected, k, v, layout="NHD")
    equal(scanned(q, k, v), expected)
