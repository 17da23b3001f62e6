"""The examples for JAX: DLPack, `jax.pure_callback`, and the foreign function interface.

On the GPU if there is one that JAX can use, else with arrays in host memory.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.example_modules import example, normal

import cuattn
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.needs("jax")

DTYPES = ("float16", "bfloat16", "float32")


jax_arrays = example("jax_arrays")
jax_ffi = example("jax_ffi")


@pytest.fixture(params=["callback", "ffi"])
def in_jit(request, jax_arrays, jax_ffi):
    return jax_arrays.attend_in_jit if request.param == "callback" else jax_ffi.attention


@pytest.fixture
def arrays(jax_arrays, rng):
    """Return a function that makes Q, K and V."""

    def make(dtype="float32", kv_heads=2, **sizes):
        made = [normal(rng, heads, **sizes) for heads in (2, kv_heads, kv_heads)]
        return [jax_arrays.jnp.asarray(x, dtype) for x in made]

    return make


def values(x):
    return np.asarray(x.astype("float32"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_go_in_and_come_out(jax_arrays, arrays, dtype):
    q, k, v = arrays(dtype)
    o = cuattn.attention(q, k, v, scheme="int8-block", is_causal=True)
    assert isinstance(o, jax_arrays.jax.Array)
    assert (o.dtype, o.shape, o.devices()) == (q.dtype, q.shape, q.devices())
    wide = [np.asarray(x).astype(np.float32) for x in (q, k, v)]
    on_host = cuattn.attention(*wide, scheme="int8-block", is_causal=True)
    np.testing.assert_allclose(values(o), on_host, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"scheme": "int8-block", "is_causal": True, "scale": 0.3}])
def test_compiled_function_has_the_same_result(jax_arrays, in_jit, arrays, dtype, options):
    jax, jnp = jax_arrays.jax, jax_arrays.jnp

    def model(attend, q, k, v):
        return attend(jnp.tanh(attend(q, k, v, **options)), k, v, **options)

    q, k, v = arrays(dtype, kv_heads=1)
    compiled = jax.jit(lambda *qkv: model(in_jit, *qkv))(q, k, v)
    eager = model(cuattn.attention, q, k, v)
    assert (compiled.dtype, compiled.shape) == (q.dtype, q.shape)
    # JAX fuses the tangent, and rounds otherwise.
    np.testing.assert_allclose(values(compiled), values(eager), rtol=0.02, atol=0.01)
    alone = jax.jit(lambda *qkv: in_jit(*qkv, **options))(q, k, v)
    np.testing.assert_array_equal(values(alone), values(cuattn.attention(q, k, v, **options)))


def test_results_of_repeated_and_scanned_calls_are_the_same(jax_arrays, in_jit, arrays):
    jax = jax_arrays.jax
    q, k, v = arrays()

    @jax.jit
    def scanned(q, k, v):
        return jax.lax.scan(lambda x, _: (in_jit(x, k, v), None), q, None, length=3)[0]

    expected = q
    for _ in range(3):
        expected = cuattn.attention(expected, k, v)
    for _ in range(3):
        np.testing.assert_array_equal(scanned(q, k, v), expected)


def test_mapped_axes_are_batches(jax_arrays, in_jit, arrays):
    jax = jax_arrays.jax
    q, k, v = arrays(batch=3)
    mapped = jax.jit(jax.vmap(in_jit))(*(x[:, None] for x in (q, k, v)))
    np.testing.assert_array_equal(mapped[:, 0], cuattn.attention(q, k, v))


def test_wrong_arguments_are_errors_of_jax(jax_arrays, in_jit, arrays):
    jax = jax_arrays.jax
    q, k, v = arrays(head_dim=20)
    with pytest.raises(jax.errors.JaxRuntimeError, match="head_dim must be a multiple of 8"):
        jax.block_until_ready(jax.jit(in_jit)(q, k, v))
    with pytest.raises(ArgumentError, match=r"^head_dim must be"):
        cuattn.attention(q, k, v)


def test_ffi_takes_empty_arrays_and_refuses_other_types(jax_arrays, jax_ffi, arrays):
    jax, jnp = jax_arrays.jax, jax_arrays.jnp
    q, k, v = arrays()
    attend = jax.jit(jax_ffi.attention)
    assert attend(q[:, :, :0], k, v).shape == (1, 2, 0, 32)
    np.testing.assert_array_equal(attend(q, k[:, :, :0], v[:, :, :0]), jnp.zeros_like(q))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a type other than float16"):
        jax.block_until_ready(attend(*(x.astype("int32") for x in (q, k, v))))


def test_ffi_gives_cupy_its_stream(jax_ffi, monkeypatch):
    streams = SimpleNamespace(from_external=lambda stream: stream.__cuda_stream__()[1])
    cupy = SimpleNamespace(cuda=SimpleNamespace(Stream=streams))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert jax_ffi._cupys(SimpleNamespace(__cuda_stream__=lambda: (0, 77))) == 77


def test_programs_say_what_came_out(jax_arrays, jax_ffi, capsys):
    jax_arrays.main()
    assert "compiled and eager differ by at most" in capsys.readouterr().out
    jax_ffi.main()
    assert "ArgumentError: head_dim must be a multiple of 8" in capsys.readouterr().out
