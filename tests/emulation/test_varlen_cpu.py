"""Sequences of different lengths in host memory: each as a call of its own would have it."""

import numpy as np
import pytest
from helpers.mod_cases import MODS, as_functions
from helpers.varlen_cases import LENGTHS_K, LENGTHS_Q, bounds, one_of, packed

import cuattn
from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact, varlen
from cuattn.scheme import Scheme

SCHEMES = {
    **{name: PRESETS[name] for name in ("fp16", "int8", "int8-block", "int8-fast", "int8-token")},
    **{name: PRESETS[name] for name in ("int4", "fp8", "sage2-8")},
    "blocks": Scheme("blocks", q_scope="block", k_scope="block", smooth_q="block", rotate="qkv"),
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
OPTIONS = (
    {},
    {"is_causal": True, "sinks": np.linspace(-1, 2, 4, dtype=np.float32)},
    {"window_size": (70, 20), "softcap": 3.0},
    {"alibi_slopes": np.linspace(0.1, 0.4, 4, dtype=np.float32), "is_causal": True},
)


def call(arrays, at, scheme, **options):
    cu = {"cu_seqlens_q": at[0], "cu_seqlens_k": at[1]}
    return cuattn.attention(*arrays, scheme=scheme, return_lse=True, **cu, **options)


def half(inputs):
    return [x.astype(np.float16) for x in inputs]


@every_scheme
@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(x) or "plain")
def test_each_sequence_is_as_if_alone(rng, scheme, options):
    arrays = half(packed(rng, LENGTHS_Q, LENGTHS_K, head_dim=24, beyond=5))
    at = bounds(LENGTHS_Q), bounds(LENGTHS_K)
    o, lse = call(arrays, at, SCHEMES[scheme], **options)
    assert o.shape == arrays[0].shape
    assert (o.dtype, lse.dtype, lse.shape) == (np.float16, np.float32, (4, len(o)))
    how = {"scheme": SCHEMES[scheme], "layout": "NHD", "return_lse": True, **options}
    for b in range(len(LENGTHS_Q)):
        rows, keys = (slice(*map(int, x[b : b + 2])) for x in at)
        q, k, v = (
            one_of(x, s.start, s.stop) for x, s in zip(arrays, (rows, keys, keys), strict=True)
        )
        expected, of_rows = cuattn.attention(q, k, v, **how)
        np.testing.assert_array_equal(o[rows], expected[0])
        np.testing.assert_array_equal(lse[:, rows], of_rows[0])


@every_scheme
def test_padding_has_no_effect(rng, scheme):
    used = np.array([0, 1, 130, 150], np.int32)
    inputs = [rng.standard_normal((4, n, 150, 24)) for n in (4, 2, 2)]
    q, k, v = half(inputs)
    for b, n in enumerate(used):
        k[b, :, n:], v[b, :, n:] = np.nan, np.inf
    how = {"scheme": SCHEMES[scheme], "return_lse": True, "is_causal": True}
    found = cuattn.attention(q, k, v, seqused_k=used, **how)
    for b, n in enumerate(used):
        one = q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n]
        for x, y in zip(found, cuattn.attention(*one, **how), strict=True):
            np.testing.assert_array_equal(x[b], y[0])


@pytest.mark.parametrize("name", MODS)
def test_expressions_know_which_sequence_they_are_asked_of(rng, name):
    arrays = packed(rng, LENGTHS_Q, LENGTHS_K, head_dim=24)
    cu = {"cu_seqlens_q": bounds(LENGTHS_Q), "cu_seqlens_k": bounds(LENGTHS_K)}
    options = MODS[name](rng, len(LENGTHS_Q), 4, max(LENGTHS_Q), max(LENGTHS_K))
    options.pop("attn_mask", None)
    o, lse = cuattn.attention(*arrays, scheme="fp16", return_lse=True, **cu, **options)
    expected, of_rows = varlen.attention(*arrays, **cu, **as_functions(options))
    np.testing.assert_allclose(o, expected, atol=4e-3)
    np.testing.assert_allclose(lse, of_rows, atol=4e-3)


def test_expressions_count_from_the_keys_that_are_used(rng):
    used = np.array([70, 0, 90], np.int32)
    inputs = half([rng.standard_normal((3, n, 90, 24)) for n in (4, 2, 2)])
    options = MODS["distances"](rng, 3, 4, 90, 90)
    o = cuattn.attention(*inputs, scheme="fp16", seqused_k=used, **options)
    expected, _ = exact.attention(*inputs, seqused_k=used, **as_functions(options))
    np.testing.assert_allclose(o, expected, atol=2e-3)


def test_padding_beside_a_mask_and_slopes(rng):
    used = np.array([70, 90], np.int32)
    inputs = half([rng.standard_normal((2, n, 90, 24)) for n in (4, 2, 2)])
    options = {
        "attn_mask": rng.random((2, 1, 90, 90)) < 0.5,
        "alibi_slopes": rng.random((2, 4)).astype(np.float32),
    }
    o = cuattn.attention(*inputs, scheme="fp16", seqused_k=used, **options)
    expected, _ = exact.attention(*inputs, seqused_k=used, **options)
    np.testing.assert_allclose(o, expected, atol=2e-3)


def test_slopes_of_sequences(rng):
    lengths = (30, 20), (50, 60)
    arrays = half(packed(rng, *lengths, head_dim=24))
    at = bounds(lengths[0]), bounds(lengths[1])
    slopes = rng.random((2, 4)).astype(np.float32)
    o, _ = call(arrays, at, "fp16", alibi_slopes=slopes)
    cu = {"cu_seqlens_q": at[0], "cu_seqlens_k": at[1]}
    expected, _ = varlen.attention(*arrays, **cu, alibi_slopes=slopes)
    np.testing.assert_allclose(o, expected, atol=2e-3)


def test_tokens_of_no_sequence_stay(rng):
    arrays = half(packed(rng, (20, 10), (30, 40), head_dim=24, beyond=6))
    at = bounds((20, 10)), bounds((30, 40))
    out = np.full((36, 4, 24), 7, np.float16)
    assert call(arrays, at, "int8", out=out)[0] is out
    assert (out[30:] == 7).all()
    assert np.isfinite(out).all()


def test_what_is_longer_than_its_limit_is_left_out(rng):
    arrays = half(packed(rng, (20, 10), (30, 40), head_dim=24))
    at = bounds((20, 10)), bounds((30, 40))
    out = np.full((30, 4, 24), 7, np.float16)
    o, _ = call(arrays, at, "int8", max_seqlen_q=15, max_seqlen_k=35, out=out)
    assert (o[15:20] == 7).all()
    one = arrays[0][20:30], arrays[1][30:65], arrays[2][30:65]
    expected = cuattn.attention(*(x[None] for x in one), layout="NHD", scheme="int8")
    np.testing.assert_array_equal(o[20:], expected[0])


def test_emulation_of_the_reference(rng):
    inputs = packed(rng, (20, 0, 140), (30, 40, 150), head_dim=24)
    cu = {"cu_seqlens_q": bounds((20, 0, 140)), "cu_seqlens_k": bounds((30, 40, 150))}
    o, lse = varlen.attention(*inputs, **cu, attend=emulate.attention, scheme="int8")
    expected, of_rows = varlen.attention(*inputs, **cu)
    np.testing.assert_allclose(o, expected, atol=0.1)
    np.testing.assert_allclose(lse, of_rows, atol=0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cu_seqlens_q", np.array([0, 20, 31], np.int32)),
        ("cu_seqlens_q", np.array([20, 0, 30], np.int32)),
        ("seqused_k", np.array([71, 1], np.int32)),
    ],
)
def test_lengths_that_make_no_sense_are_named_in_host_memory(rng, name, value):
    arrays = half(packed(rng, (20, 10), (30, 40), head_dim=24))
    given = {"cu_seqlens_q": bounds((20, 10)), "cu_seqlens_k": bounds((30, 40)), name: value}
    with pytest.raises(ArgumentError, match=name):
        cuattn.attention(*arrays, **given)
