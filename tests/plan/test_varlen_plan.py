"""Calls with lengths, by both families on the simulated GPU: addresses, pitches and blocks."""

import numpy as np
import pytest
from helpers.mod_cases import MODS, as_functions
from helpers.varlen_cases import LENGTHS_K, LENGTHS_Q, bounds, packed

import cuattn
from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact, varlen
from cuattn.scheme import Scheme

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of
from simulated_gpu.score_rules import EXPRESSIONS

SCHEMES = {
    **{name: PRESETS[name] for name in ("fp16", "int8", "int8-block", "int8-fast", "int8-token")},
    **{name: PRESETS[name] for name in ("int8-fp16", "int8-fp8", "fp8", "sage2-8")},
    "rotated": Scheme("rotated", rotate="qkv", k_scope="block", v_scope="channel"),
    "blocks": Scheme("blocks", q_scope="block", k_scope="block", smooth_q="block", rotate="qkv"),
    "half block": Scheme("half block", k_scope="block", pv="fp16", p_range="row", p_block=64),
}
OPTIONS = (
    {},
    {"is_causal": True, "sinks": np.linspace(-1, 2, 4, dtype=np.float32)},
    {"window_size": (70, 20), "softcap": 3.0},
    {"alibi_slopes": np.linspace(0.1, 0.4, 4, dtype=np.float32), "is_causal": True},
)


def tolerance(scheme):
    """Of O: where P is rounded to FP8, a sum in another order may move one to the next."""
    return 0.03 if SCHEMES[scheme].pv == "fp8" else 4e-3


@pytest.fixture(params=["89", "90a"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


@pytest.mark.covering
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(x) or "plain")
def test_sequences_that_lie_end_to_end(gpu, rng, scheme, dtype, options):
    inputs = packed(rng, LENGTHS_Q, LENGTHS_K, head_dim=40, beyond=5)
    arrays = [x.astype(dtype) for x in inputs]
    cu = {"cu_seqlens_q": bounds(LENGTHS_Q), "cu_seqlens_k": bounds(LENGTHS_K)}
    how = {"scheme": SCHEMES[scheme], **options}
    o, lse = cuattn.attention(*arrays, **cu, **how, return_lse=True)
    end = sum(LENGTHS_Q)
    assert (o.shape, lse.shape) == (arrays[0].shape, (4, len(o)))
    expected, of_rows = varlen.attention(*arrays, **cu, **how, attend=emulate.attention)
    np.testing.assert_allclose(o[:end], expected[:end], atol=tolerance(scheme))
    np.testing.assert_allclose(lse[:, :end], of_rows[:, :end], atol=2e-3)
    # What is there stays.
    assert np.isnan(o[end:]).all()
    assert np.isnan(lse[:, end:]).all()


@pytest.mark.covering
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sequences_in_slots(gpu, rng, scheme, dtype):
    used = np.array([0, 1, 130, 257, 300], np.int32)
    inputs = [rng.standard_normal((5, *x, 40)) for x in ((4, 150), (2, 300), (2, 300))]
    q, k, v = (x.astype(dtype) for x in inputs)
    for b, n in enumerate(used):
        k[b, :, n:], v[b, :, n:] = np.nan, np.nan
    how = {"scheme": SCHEMES[scheme], "is_causal": True}
    o = cuattn.attention(q, k, v, seqused_k=used, **how)
    for b, n in enumerate(used):
        one = q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n]
        expected = emulate.attention(*one, **how)[0][0] if n else np.zeros_like(o[b])
        np.testing.assert_allclose(o[b], expected, atol=tolerance(scheme))


@pytest.mark.parametrize("name", MODS)
@pytest.mark.parametrize("scheme", ["int8", "int8-token", "fp16", "blocks"])
def test_expressions_know_which_sequence_they_are_asked_of(gpu, rng, scheme, name):
    lengths = LENGTHS_Q[:6], LENGTHS_K[:6]
    arrays = [x.astype(np.float16) for x in packed(rng, *lengths, head_dim=40)]
    cu = {"cu_seqlens_q": bounds(lengths[0]), "cu_seqlens_k": bounds(lengths[1])}
    options = MODS[name](rng, 6, 4, max(lengths[0]), max(lengths[1]))
    options.pop("attn_mask", None)
    EXPRESSIONS.update((x.text, x) for x in options.values() if hasattr(x, "reference"))
    how = {"scheme": SCHEMES[scheme]}
    found = cuattn.attention(*arrays, **cu, **how, **options, return_lse=True)
    functions = as_functions(options)
    expected = varlen.attention(*arrays, **cu, **how, **functions, attend=emulate.attention)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance(scheme))


@pytest.mark.parametrize("scheme", ["int8", "fp16"])
def test_expressions_in_slots(gpu, rng, scheme):
    used = np.array([0, 1, 130, 257, 300], np.int32)
    inputs = [rng.standard_normal((5, *x, 40)) for x in ((4, 150), (2, 300), (2, 300))]
    q, k, v = (x.astype(np.float16) for x in inputs)
    options = MODS["distances"](rng, 5, 4, 150, 300)
    EXPRESSIONS.update((x.text, x) for x in options.values())
    o = cuattn.attention(q, k, v, seqused_k=used, scheme=scheme, **options)
    expected, _ = exact.attention(q, k, v, seqused_k=used, **as_functions(options))
    np.testing.assert_allclose(o, expected, atol=0.1 if scheme == "int8" else 4e-3)


@pytest.mark.covering
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dims", [(40, 72), (72, 40)], ids=str)
def test_v_of_another_head_dim(gpu, rng, scheme, dims):
    q, k, _ = packed(rng, LENGTHS_Q, LENGTHS_K, head_dim=dims[0])
    _, _, v = packed(rng, LENGTHS_Q, LENGTHS_K, head_dim=dims[1])
    arrays = [x.astype(np.float16) for x in (q, k, v)]
    cu = {"cu_seqlens_q": bounds(LENGTHS_Q), "cu_seqlens_k": bounds(LENGTHS_K)}
    how = {"scheme": SCHEMES[scheme], "is_causal": True}
    o = cuattn.attention(*arrays, **cu, **how)
    expected, _ = varlen.attention(*arrays, **cu, **how, attend=emulate.attention)
    assert o.shape == (len(q), 4, dims[1])
    np.testing.assert_allclose(o, expected, atol=tolerance(scheme))


@pytest.mark.parametrize("dtype", ["bool", "float32"])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_mask_of_sequences_in_slots(gpu, rng, dtype, is_mapped):
    inputs = [rng.standard_normal((2, *x, 40)) for x in ((4, 150), (2, 300), (2, 300))]
    q, k, v = (x.astype(np.float16) for x in inputs)
    seen = rng.random((2, 1, 150, 300)) < 0.5
    mask = seen if dtype == "bool" else np.where(seen, 0, -np.inf).astype(dtype)
    used = np.array([130, 300], np.int32)
    given = cuattn.block_mask(mask) if is_mapped else mask
    o = cuattn.attention(q, k, v, seqused_k=used, attn_mask=given, scheme="fp16")
    for b, n in enumerate(used):
        one = q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n]
        expected, _ = exact.attention(*one, attn_mask=seen[b : b + 1, ..., :n])
        np.testing.assert_allclose(o[b], expected[0], atol=4e-3)


def test_result_is_that_of_the_definition(gpu, rng):
    arrays = [x.astype(np.float16) for x in packed(rng, (40, 200), (100, 150), head_dim=40)]
    cu = {"cu_seqlens_q": bounds((40, 200)), "cu_seqlens_k": bounds((100, 150))}
    o = cuattn.attention(*arrays, **cu, scheme="fp16")
    expected, _ = varlen.attention(*arrays, **cu, attend=exact.attention)
    np.testing.assert_allclose(o, expected, atol=4e-3)


def test_nothing_is_written_if_there_is_nothing(gpu, rng):
    q, k, v = (x.astype(np.float16) for x in packed(rng, (40,), (50,), head_dim=40))
    none = np.zeros(1, np.int32)
    o = cuattn.attention(q, k, v, cu_seqlens_q=none, cu_seqlens_k=none)
    assert np.isnan(o).all()
    assert gpu.launched == []


def test_without_any_key_rows_of_sequences_are_zeros(gpu, rng):
    q, k, v = (x.astype(np.float16) for x in packed(rng, (40, 10), (0, 0), head_dim=40))
    out = np.full((60, 4, 40), 7, np.float16)
    more = np.concatenate([q, q[:10]])
    cu = {"cu_seqlens_q": bounds((40, 10)), "cu_seqlens_k": bounds((0, 0))}
    _, lse = cuattn.attention(more, k, v, **cu, out=out, return_lse=True)
    assert not out[:50].any()
    assert (out[50:] == 7).all()
    assert np.isneginf(lse[:, :50]).all()
