"""Sorted keys from arrays to the output, by both families of kernels on the simulated GPU."""

import numpy as np
import pytest

import cuattn
from cuattn.presets import PRESETS
from cuattn.reference import emulate
from cuattn.reference.quantize import sorted_tokens
from cuattn.scheme import Scheme

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of

SORTED = {"k_scope": "sorted", "v_scope": "sorted"}
SCHEMES = [
    PRESETS["int8"],
    Scheme("means", **SORTED, smooth_k="mean", smooth_v="mean"),
    Scheme("bare", **SORTED, q_scope="block", smooth_k="none"),
]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
LENGTHS = [(5, 1), (40, 100), (70, 128), (33, 300)]


@pytest.fixture(params=["80", "90a"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def qkv(rng, seqlen_q, seqlen_kv, head_dim=40):
    """Return inputs whose tokens differ in size."""
    sizes = rng.lognormal(size=(2, 2, 2, seqlen_kv, 1))
    k, v = sizes * rng.standard_normal((2, 2, 2, seqlen_kv, head_dim)) + 0.5
    q = rng.standard_normal((2, 4, seqlen_q, head_dim))
    return [x.astype(np.float32) for x in (q, k, v)]


def quantizers(gpu):
    """Return what the launches of the quantizer were, each as its spec."""
    return [spec for spec in gpu.specs if spec.function == "quantize_operands"]


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_arrays_are_attended_as_in_the_emulation(gpu, rng, scheme, is_causal, lengths):
    inputs = qkv(rng, *lengths)
    options = {"scheme": scheme, "is_causal": is_causal}
    o, lse = cuattn.attention(*inputs, return_lse=True, **options)
    expected, expected_lse = emulate.attention(*inputs, **options)
    np.testing.assert_allclose(o, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)
    assert len(quantizers(gpu)) == 1


@every_scheme
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_pair_is_what_the_call_makes_of_arrays(gpu, rng, scheme, layout, lengths):
    q, k, v = qkv(rng, *lengths)
    given = [x if layout == "HND" else np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v)]
    options = {"scheme": scheme, "layout": layout}
    whole = cuattn.attention(*given, **options).copy()
    pair = cuattn.quantize_kv(*given[1:], **options)
    assert pair[0].order is pair[1].order
    np.testing.assert_array_equal(pair[0].order, sorted_tokens(k, v, scheme))
    for some in (pair, (pair[0], given[2]), (given[1], pair[1])):
        np.testing.assert_array_equal(cuattn.attention(given[0], *some, **options), whole)


@every_scheme
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_keys_that_the_lse_is_corrected_for_take_the_order_of_v(gpu, rng, scheme, lengths):
    """Of a quantized Q what smoothing took from logits is computed first, with K's vector."""
    q, k, v = qkv(rng, *lengths)
    whole = cuattn.attention(q, k, v, scheme=scheme).copy()
    q8 = cuattn.quantize(q, operand="q", scheme=scheme)
    k8, v8 = cuattn.quantize_kv(k, v, scheme=scheme)
    for some in ((k8, v8), (k8, v), (k, v8), (k, v)):
        o, _ = cuattn.attention(q8, *some, scheme=scheme, return_lse=True)
        np.testing.assert_array_equal(o, whole)


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_without_an_order_places_are_columns(gpu, rng, scheme, is_causal):
    """K or V alone has the natural order, and so has what is quantized beside it."""
    q, k, v = qkv(rng, 40, 300)
    options = {"scheme": scheme, "is_causal": is_causal}
    alone = {
        name: cuattn.quantize(x, operand=name, scheme=scheme) for name, x in (("k", k), ("v", v))
    }
    assert alone["k"].order is None
    assert alone["v"].order is None
    both = cuattn.attention(q, alone["k"], alone["v"], **options).copy()
    for given in ((alone["k"], v), (k, alone["v"])):
        np.testing.assert_array_equal(cuattn.attention(q, *given, **options), both)
    for name, x in (("k", k), ("v", v)):
        step = alone[name].to_reference().scale
        error = np.linalg.norm(alone[name].to_reference().dequantize() - x, axis=-1)
        assert (error <= 0.51 * step * x.shape[3] ** 0.5 + 1e-6).all()


def test_a_cta_has_a_block_of_both(gpu, rng):
    """Of K and V together as many CTAs as of one of them, and threads for words of V."""
    q, k, v = qkv(rng, 5, 300, 64)
    cuattn.attention(q, k, v)
    (spec,) = quantizers(gpu)
    assert (spec.tiles("k", 300), spec.tiles("v", 300)) == (3, 3)
    assert spec.num_threads <= 256
