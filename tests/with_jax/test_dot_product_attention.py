"""`cuattn.jax.dot_product_attention`: the bits of `cuattn.attention`, the rules of `jax.nn`'s."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest

import cuattn
from cuattn import ArgumentError, UnsupportedError

pytestmark = pytest.mark.needs("jax")

DTYPES = ("float16", "bfloat16", "float32")
WAYS = ("ffi", "callback")


@pytest.fixture(scope="module")
def jx():
    """JAX and cuattn's function for it."""
    with pytest.MonkeyPatch.context() as patch:
        # JAX leaves memory to the others; has an effect only if no test before has started it.
        patch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax, ours = import_module("jax"), import_module("cuattn.jax")
        yield SimpleNamespace(jax=jax, jnp=jax.numpy, attend=ours.dot_product_attention)


@pytest.fixture
def arrays(jx, rng):
    """Return a function that makes Q, K and V [batch, token, head, channel]."""

    def make(dtype="float32", batch=2, rows=24, keys=24, kv_heads=1):
        sizes = [(rows, 2), (keys, kv_heads), (keys, kv_heads)]
        made = (rng.standard_normal((batch, *some, 32), np.float32) for some in sizes)
        return [jx.jnp.asarray(x, dtype) for x in made]

    return make


def equal(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(*(np.asarray(x).view(np.uint8) for x in (found, expected)))


direct = partial(cuattn.attention, layout="NHD")


def test_signature_begins_as_that_of_jax(jx):
    theirs = signature(jx.jax.nn.dot_product_attention).parameters
    ours = signature(jx.attend).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    same = [name for name in theirs if ours[name].kind == theirs[name].kind]
    assert same == list(theirs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["int8", "int8-block"])
def test_bits_are_those_of_attention(jx, arrays, way, dtype, scheme):
    q, k, v = arrays(dtype)
    options = {"is_causal": True, "scale": 0.3, "scheme": scheme}
    expected = direct(q, k, v, **options)
    attend = partial(jx.attend, implementation=way, **options)
    for found in (attend(q, k, v), jx.jax.jit(attend)(q, k, v), attend(q[0], k[0], v[0])[None]):
        assert isinstance(found, jx.jax.Array)
        assert found.devices() == q.devices()
        equal(found, expected[: found.shape[0]])
    o, lse = jx.jax.jit(partial(attend, return_residual=True))(q, k, v)
    equal(o, expected)
    equal(lse.swapaxes(1, 2), direct(q, k, v, **options, return_lse=True)[1])


RULES = {
    "nothing": {},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (3, 1)},
    "both": {"is_causal": True, "local_window_size": 4, "scale": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("lengths", [(24, 24), (9, 24), (24, 20)])
@pytest.mark.parametrize("arrays_too", ["none", "lengths", "masks", "all"])
@pytest.mark.covering
def test_rules_are_those_of_jax(jx, arrays, rng, way, rules, lengths, arrays_too):
    if "return_residual" not in signature(jx.jax.nn.dot_product_attention).parameters:
        pytest.skip("this version of JAX has no return_residual")
    rows, keys = lengths
    q, k, v = arrays(rows=rows, keys=keys)
    options = dict(RULES[rules])
    if arrays_too in ("lengths", "all"):
        options["query_seq_lengths"] = jx.jnp.array([rows, 5], "int32")
        options["key_value_seq_lengths"] = jx.jnp.array([18, keys], "int32")
    if arrays_too in ("masks", "all"):
        options["bias"] = jx.jnp.asarray(rng.standard_normal((rows, keys), np.float32))
        mask = rng.random((2, 1, rows, keys)) < 0.8
        mask[..., 0] = True
        options["mask"] = jx.jnp.asarray(mask)
    exact = jx.jax.nn.dot_product_attention(q, k, v, **options, return_residual=True)
    static = {name: x for name, x in options.items() if not isinstance(x, jx.jax.Array)}
    traced = {name: x for name, x in options.items() if name not in static}
    attend = partial(jx.attend, **static, return_residual=True, implementation=way, scheme="fp16")
    o, lse = jx.jax.jit(attend)(q, k, v, **traced)
    # A row that sees nothing is 0; JAX gives it the mean of V, and a large negative residual.
    sees = np.asarray(exact[1]) > -1e6
    assert sees.mean() > 0.3
    np.testing.assert_allclose(np.asarray(o)[sees], np.asarray(exact[0])[sees], atol=0.01)
    np.testing.assert_allclose(np.asarray(lse)[sees], np.asarray(exact[1])[sees], atol=0.01)
    assert not np.asarray(o)[~sees].any()
    assert np.isneginf(np.asarray(lse)[~sees]).all()


@pytest.mark.parametrize("way", WAYS)
def test_mapped_axes_are_batches(jx, arrays, rng, way):
    q, k, v = arrays(batch=6)
    attend = partial(jx.attend, implementation=way)
    split = [x.reshape(3, 2, *x.shape[1:]) for x in (q, k, v)]
    expected = direct(q, k, v)
    equal(jx.jax.jit(jx.jax.vmap(attend))(*split).reshape(q.shape), expected)
    equal(jx.jax.vmap(jx.jax.vmap(attend))(*split).reshape(q.shape), expected)
    # One K and V for all, and masks and lengths of their own.
    mask = jx.jnp.asarray(rng.random((3, 1, 1, 1, 24)) < 0.7)
    count = jx.jnp.array([[3, 24], [24, 8], [1, 2]], "int32")

    def one(q, mask, count):
        return attend(q, *(x[:2] for x in (k, v)), mask=mask, key_value_seq_lengths=count)

    found = jx.jax.vmap(one)(split[0], mask, count)
    for i in range(3):
        options = {"attn_mask": mask[i], "seqused_k": count[i]}
        equal(found[i], direct(split[0][i], k[:2], v[:2], **options))


@pytest.mark.parametrize("way", WAYS)
def test_scanned_calls_are_the_same(jx, arrays, way):
    q, k, v = arrays()

    @jx.jax.jit
    def scanned(q, k, v):
        body = lambda x, _: (jx.attend(x, k, v, implementation=way), None)  # noqa: E731
        return jx.jax.lax.scan(body, q, None, length=3)[0]

    expected = q
    for _ in range(3):
        expected = direct(expected, k, v)
    for _ in range(3):
        equal(scanned(q, k, v), expected)


def test_schemes_of_ones_own_go_through(jx, arrays):
    scheme = cuattn.PRESETS["int8-block"]
    own = type(scheme)(**{**vars(scheme), "name": "own"})
    q, k, v = arrays()
    equal(jx.jax.jit(partial(jx.attend, scheme=own))(q, k, v), direct(q, k, v, scheme=own))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_refused(jx, arrays, way):
    q, k, v = arrays()
    attend = partial(jx.attend, implementation=way)
    for differentiated in (
        lambda: jx.jax.grad(lambda q: attend(q, k, v).sum())(q),
        lambda: jx.jax.jit(jx.jax.grad(lambda v: attend(q, k, v).sum()))(v),
        lambda: jx.jax.jvp(lambda q: attend(q, k, v), (q,), (q,)),
    ):
        with pytest.raises(UnsupportedError, match="no gradients: give dot_product_attention jax"):
            differentiated()

    def through(w):
        return (attend(*(jx.jax.lax.stop_gradient(w * x) for x in (q, k, v))) * w).sum()

    expected = direct(2 * q, 2 * k, 2 * v).sum()
    np.testing.assert_allclose(jx.jax.grad(through)(2.0), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"implementation": "cudnn"}, r"implementation must be one of \(None, 'ffi', 'callback'\)"),
        ({"scheme": "int9"}, "scheme must be"),
        ({"scale": -1.0}, "scale must be at least 0"),
        ({"is_causal": 1}, "is_causal must be True or False"),
        ({"local_window_size": (1, 2, 3)}, "local_window_size must be a number or two"),
        ({"local_window_size": -1}, "local_window_size must be of numbers from 0 on"),
        ({"query_seq_lengths": [1.0, 2.0]}, r"query_seq_lengths must be int32 \[2\]"),
        ({"mask": np.zeros((24, 24))}, "mask must be of bool"),
        ({"bias": np.zeros((24, 24), bool)}, "bias must be of floats"),
        ({"mask": np.ones((1, 1, 5, 24), bool)}, "attn_mask"),
        ({"causal": True}, "there is no argument 'causal'; expected 'is_causal'"),
    ],
)
def test_wrong_arguments_are_named_when_jax_traces(jx, arrays, options, said):
    with pytest.raises(ArgumentError, match=said):
        jx.jax.jit(lambda *qkv: jx.attend(*qkv, **options)).trace(*arrays())


def test_wrong_operands_are_named(jx, arrays):
    q, k, v = arrays()
    for operands, said in (
        ((q, k[0], v), r"key must be of 4 axes \[batch, token, head, channel\], or all of 3"),
        ((q, k, v[:, :5]), "must be"),
        (tuple(x[..., :20] for x in (q, k, v)), "head_dim must be a multiple of 8"),
        (tuple(x.astype("int32") for x in (q, k, v)), "must be"),
    ):
        with pytest.raises(ArgumentError, match=said):
            jx.attend(*operands)


@pytest.mark.parametrize("way", WAYS)
def test_what_fails_when_it_runs_is_an_error_of_jax(jx, arrays, monkeypatch, way):
    def failing(*args, **options):
        raise UnsupportedError("this GPU is too old")

    monkeypatch.setattr("cuattn.jax.in_graph.attention", failing)
    attend = jx.jax.jit(partial(jx.attend, implementation=way))
    with pytest.raises(jx.jax.errors.JaxRuntimeError, match="UnsupportedError: this GPU is too"):
        jx.jax.block_until_ready(attend(*arrays()))


def test_ffi_gives_cupy_its_stream(jx, monkeypatch):
    streams = SimpleNamespace(from_external=lambda stream: stream.__cuda_stream__()[1])
    cupy = SimpleNamespace(cuda=SimpleNamespace(Stream=streams))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    cupys = import_module("cuattn.jax.in_graph")._cupys
    assert cupys(SimpleNamespace(__cuda_stream__=lambda: (0, 77))) == 77


@pytest.mark.parametrize("way", WAYS)
def test_many_calls_at_once_do_not_block_each_other(jx, arrays, way):
    """XLA's threads may be one, and that one may be where Python is wanted."""
    q, k, v = arrays()

    @jx.jax.jit
    def many(q, k, v):
        return sum(jx.attend(q * i, k, v, implementation=way) for i in range(1, 9))

    expected = many(q, k, v)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: many(q, k, v), range(16)):
            equal(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_arrays_may_be_empty(jx, arrays, way):
    q, k, v = arrays()
    attend = jx.jax.jit(partial(jx.attend, implementation=way))
    assert attend(q[:, :0], k, v).shape == (2, 0, 2, 32)
    equal(attend(q, k[:, :0], v[:, :0]), jx.jnp.zeros_like(q))
