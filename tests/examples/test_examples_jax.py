"""The example for JAX; tests/with_jax has the tests of the module that it uses."""

import numpy as np
import pytest
from helpers.example_modules import example, normal

import cuattn
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.needs("jax")

DTYPES = ("float16", "bfloat16", "float32")


jax_arrays = example("jax_arrays")


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_go_in_and_come_out(jax_arrays, rng, dtype):
    q, k, v = (jax_arrays.jnp.asarray(normal(rng), dtype) for _ in range(3))
    o = cuattn.attention(q, k, v, scheme="int8-block", is_causal=True)
    assert isinstance(o, jax_arrays.jax.Array)
    assert (o.dtype, o.shape, o.devices()) == (q.dtype, q.shape, q.devices())
    wide = [np.asarray(x).astype(np.float32) for x in (q, k, v)]
    on_host = cuattn.attention(*wide, scheme="int8-block", is_causal=True)
    np.testing.assert_allclose(np.asarray(o.astype("float32")), on_host, rtol=0.05, atol=0.02)


def test_wrong_arguments_are_named(jax_arrays, rng):
    q, k, v = (jax_arrays.jnp.asarray(normal(rng, head_dim=20)) for _ in range(3))
    with pytest.raises(ArgumentError, match=r"^head_dim must be"):
        cuattn.attention(q, k, v)


def test_program_says_what_came_out(jax_arrays, capsys):
    jax_arrays.main()
    assert "compiled and eager differ by at most" in capsys.readouterr().out
