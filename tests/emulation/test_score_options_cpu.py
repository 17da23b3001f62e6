"""Windows, caps, sinks, slopes and masks of `attention` on arrays in host memory."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.foreign import Foreign, OnGPU
from helpers.score_cases import ARRAYS, SETS, in_library, score_options
from hypothesis import given, note, settings
from hypothesis import strategies as st

import cuattn
from cuattn.errors import ArgumentError
from cuattn.presets import AUTO, PRESETS
from cuattn.reference import emulate, exact
from cuattn.scheme import Scheme

SCHEMES = {
    **PRESETS,
    "mean": Scheme("mean", smooth_k="mean", smooth_v="mean"),
    "blocks": Scheme("blocks", q_scope="block", k_scope="block", smooth_q="block", rotate="qkv"),
}
LEAST = {"float16": -65504.0, "bfloat16": -float.fromhex("0x1.fep127")}
LEAST |= {"float32": float(np.finfo(np.float32).min)}


def qkv(rng, batch=2, heads=(4, 2), seqlens=(20, 150), head_dim=24):
    shapes = ((heads[0], seqlens[0]), (heads[1], seqlens[1]), (heads[1], seqlens[1]))
    return [(rng.standard_normal((batch, *x, head_dim)) + 0.5).astype(np.float32) for x in shapes]


def in_numpy(x, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    return x.astype(dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SETS)
def test_result_is_the_emulation_rounded_once(rng, scheme, name):
    inputs = qkv(rng)
    options = score_options(name, rng, inputs[0].shape, 150)
    expected, expected_lse = emulate.attention(*inputs, scheme=SCHEMES[scheme], **options)
    for dtype in ("float16", "bfloat16", "float32"):
        given_options = in_library(options, dtype, in_numpy)
        how = {"scheme": SCHEMES[scheme], **given_options}
        o, lse = cuattn.attention(*inputs, return_lse=True, **how)
        np.testing.assert_array_equal(o, expected.astype(np.float32))
        np.testing.assert_array_equal(lse, expected_lse.astype(np.float32))
    np.testing.assert_array_equal(o, cuattn.attention(*inputs, **how))


def test_other_layouts_and_outputs(rng):
    inputs = qkv(rng)
    options = score_options("everything", rng, inputs[0].shape, 150)
    o, lse = cuattn.attention(*inputs, return_lse=True, **options)
    nhd = [x.swapaxes(1, 2) for x in inputs]
    out = np.empty_like(nhd[0])
    found = cuattn.attention(*nhd, layout="NHD", out=out, return_lse=True, **options)
    assert found[0] is out
    np.testing.assert_array_equal(out.swapaxes(1, 2), o)
    np.testing.assert_array_equal(found[1], lse)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if SCHEMES[name].qk != "fp16"])
@pytest.mark.parametrize("name", ["sliding", "everything"])
def test_quantized_operands_give_the_same(rng, scheme, name):
    inputs, how = qkv(rng), {"scheme": SCHEMES[scheme]}
    options = score_options(name, rng, inputs[0].shape, 150)
    whole = cuattn.attention(*inputs, **how, **options)
    k = cuattn.quantize(inputs[1], operand="k", **how)
    if SCHEMES[scheme].smooth_q == "none" and SCHEMES[scheme].k_scope != "sorted":
        found = cuattn.attention(inputs[0], k, inputs[2], **how, **options)
        np.testing.assert_array_equal(found, whole)
    q = cuattn.quantize(inputs[0], operand="q", **how)
    found = cuattn.attention(q, *inputs[1:], **how, **options)
    # What smoothing took from the logits of a quantized Q is that of its codes.
    rounding = 0.04 if SCHEMES[scheme].qk == "int8" else 0.2
    np.testing.assert_allclose(found, whole, atol=rounding)


@pytest.mark.parametrize("scheme", AUTO)
def test_chosen_schemes_have_them_too(rng, scheme):
    inputs = qkv(rng)
    options = score_options("everything", rng, inputs[0].shape, 150)
    found, wanted = (
        cuattn.attention(*inputs, scheme=x, **options) for x in (scheme, AUTO[scheme][-1])
    )
    np.testing.assert_array_equal(found, wanted)


@st.composite
def calls(draw):
    kv_heads = draw(st.integers(1, 2))
    return {
        "scheme": draw(st.sampled_from(sorted(SCHEMES))),
        "batch": draw(st.integers(1, 2)),
        "heads": (kv_heads * draw(st.sampled_from([1, 2, 4])), kv_heads),
        "seqlens": (draw(st.integers(1, 70)), draw(st.integers(0, 280))),
        "head_dim": 8 * draw(st.integers(1, 12)),
        "is_causal": draw(st.booleans()),
        "sides": (draw(st.integers(-1, 90)), draw(st.integers(-1, 30))),
        "softcap": draw(st.sampled_from([0.0, 2.0, 30.0])),
        "sinks": draw(st.booleans()),
        "slopes": draw(st.sampled_from([None, 1, 2])),
        "mask": draw(st.sampled_from([None, "bool", "float16", "float32"])),
        "broadcast": draw(st.tuples(*[st.booleans()] * 4)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


# Root of the mean square of the error, relative to that of V: what 8 and 4 bits of Q, K, V and P
# may come to. Rows that see few keys average least out.
BOUNDS = {"int4": 0.6, "fp8": 0.12, "int8": 0.06, "fp16": 0.006}


def options_of(call, rng):
    """Return the options of a call that was drawn."""
    batch, heads = call["batch"], call["heads"][0]
    options = {key: call[key] for key in ("is_causal", "softcap")}
    options["window_size"] = call["sides"]
    if call["sinks"]:
        options["sinks"] = rng.standard_normal(heads).astype(np.float32)
    if call["slopes"]:
        shape = (heads,) if call["slopes"] == 1 else (batch, heads)
        options["alibi_slopes"] = (0.1 * rng.random(shape)).astype(np.float32)
    if call["mask"]:
        whole = (batch, heads, *call["seqlens"])
        shape = [1 if one else n for one, n in zip(call["broadcast"], whole, strict=True)]
        mask = rng.random(shape) < 0.8
        if call["mask"] != "bool":
            least = rng.choice([-np.inf, LEAST[call["mask"]]])
            mask = np.where(mask, rng.standard_normal(shape), least).astype(call["mask"])
        options["attn_mask"] = mask
    return options


@settings(max_examples=150)
@given(call=calls())
def test_any_combination_is_exact_within_the_schemes_error(call):
    note(call)
    rng = np.random.default_rng(call["seed"])
    inputs = qkv(rng, **{key: call[key] for key in ("batch", "heads", "seqlens", "head_dim")})
    options, scheme = options_of(call, rng), SCHEMES[call["scheme"]]
    before = {name: options[name].copy() for name in ARRAYS if name in options}
    o, lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True, **options)
    for name, x in before.items():
        np.testing.assert_array_equal(options[name], x)
    truth, true_lse = exact.attention(*inputs, **options)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(true_lse))
    keys_alone = exact.attention(*inputs, **options | {"sinks": None})[1]
    assert not o[np.isneginf(keys_alone)].any()
    seen = np.isfinite(true_lse)
    worst = max(BOUNDS[scheme.qk], BOUNDS[scheme.pv])
    if inputs[2].size:
        norm = np.sqrt(np.mean(inputs[2] ** 2))
        error = np.sqrt(np.mean((o - truth) ** 2)) / norm
        assert error <= worst, (error, worst)
    if seen.any():
        off = np.sqrt(np.mean((lse[seen] - true_lse[seen]) ** 2))
        assert off <= 2 * worst, (off, worst)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_what_changes_nothing_gives_the_same_bits(rng, scheme, is_causal):
    inputs = qkv(rng, seqlens=(50, 150))
    how = {"scheme": SCHEMES[scheme], "is_causal": is_causal, "return_lse": True}
    plain = cuattn.attention(*inputs, **how)
    for options in (
        {"window_size": (149, 49)},
        {"window_size": (-1, 0) if is_causal else (-1, -1)},
        {"softcap": 0},
        {"sinks": np.full(4, -np.inf, np.float32)},
        {"attn_mask": np.ones((1, 150), bool)},
        {"attn_mask": np.ones((2, 4, 50, 150), bool)},
    ):
        for x, y in zip(cuattn.attention(*inputs, **how, **options), plain, strict=True):
            assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", LEAST)
def test_the_least_number_of_a_type_hides(rng, dtype):
    inputs = qkv(rng)
    seen = rng.random((20, 150)) < 0.5
    seen[7] = False
    wanted = cuattn.attention(*inputs, attn_mask=seen, return_lse=True)
    assert (wanted[1][..., 7] == -np.inf).all()
    for least in (-np.inf, LEAST[dtype]):
        bias = in_numpy(np.where(seen, np.float32(0), np.float32(least)), dtype)
        for x in (bias, bias[::-1, ::-1].copy()[::-1, ::-1]):
            found = cuattn.attention(*inputs, attn_mask=x, return_lse=True)
            for mine, theirs in zip(found, wanted, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_arrays_of_other_libraries_are_read_through_their_strides(rng):
    inputs = qkv(rng)
    options = score_options("everything", rng, inputs[0].shape, 150)
    options["attn_mask"] = np.broadcast_to(options["attn_mask"], (2, 4, 20, 150))
    wanted = cuattn.attention(*inputs, **options)

    def foreign(x, dtype):
        copied = np.array(x)  # DLPack of NumPy knows no read-only arrays everywhere
        return Foreign(np.lib.stride_tricks.as_strided(copied, x.shape, x.strides))

    base = in_library(options | {"attn_mask": options["attn_mask"][:, :1]}, "float32", foreign)
    np.testing.assert_array_equal(cuattn.attention(*inputs, **base), wanted)


def test_wrong_arrays_are_named(rng):
    inputs = qkv(rng)
    for options, message in (
        ({"sinks": [0.0] * 4}, "^sinks must be an array"),
        ({"sinks": np.zeros(4)}, r"^sinks\.dtype must be one of"),
        ({"sinks": np.zeros(2, np.float32)}, r"^sinks\.shape must be \(4,\)"),
        ({"alibi_slopes": 0.5}, "^alibi_slopes must be an array"),
        ({"attn_mask": np.ones((150, 20), bool)}, r"^attn_mask\.shape must be one that broad"),
        ({"attn_mask": np.ma.masked_array(np.ones((20, 150), bool))}, "^attn_mask must be an arr"),
        ({"attn_mask": "causal"}, "^attn_mask must be an array"),
        ({"window_size": 20}, "^window_size must be"),
        ({"softcap": -1.0}, "^softcap must be at least 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cuattn.attention(*inputs, **options)


def test_arrays_elsewhere_are_refused(rng):
    class Mask(OnGPU):
        """Says where it is, and gives a capsule of host memory."""

        def __dlpack__(self, **options):
            return np.ones((20, 150), np.float32).__dlpack__()

    with pytest.raises(ArgumentError, match=r"^attn_mask must be"):
        cuattn.attention(*qkv(rng), attn_mask=Mask())


def test_outputs_lie_apart_from_what_is_read(rng):
    inputs = qkv(rng)
    out = np.empty((2, 4, 20, 24), np.float32)
    for options in ({"sinks": out[0, :, 0, 0]}, {"attn_mask": out.view(bool)[0, 0, :, :1]}):
        out.fill(0)
        with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of"):
            cuattn.attention(*inputs, out=out, **options)
        assert not out.any()


def test_check_finite_lets_masks_hide(rng):
    inputs = qkv(rng)
    mask, sinks = np.full((20, 150), -np.inf, np.float32), np.full(4, -np.inf, np.float32)
    mask[:, :9] = 0
    cuattn.attention(*inputs, attn_mask=mask, sinks=sinks, check_finite=True)


def test_a_scheme_of_ones_own_that_smooths_is_capped_as_if_it_did_not(rng):
    """With an offset in K that takes most logits to where the cap is flat."""
    q, k, v = qkv(rng)
    k += 3
    scheme = replace(PRESETS["int8-token"], name="own", smooth_k="mean")
    found = cuattn.attention(q, k, v, scheme=scheme, softcap=5.0, sinks=np.zeros(4, np.float32))
    wanted, _ = exact.attention(q, k, v, softcap=5.0, sinks=np.zeros(4))
    np.testing.assert_allclose(found, wanted, atol=0.05)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tensors_of_pytorch(rng, dtype):
    import torch

    inputs = qkv(rng)
    options = score_options("everything", rng, inputs[0].shape, 150)
    tensors = [torch.from_numpy(x) for x in inputs]
    given_options = in_library(
        options, dtype, lambda x, kind: torch.from_numpy(x).to(getattr(torch, kind))
    )
    given_options["attn_mask"] = given_options["attn_mask"].expand(2, 4, 20, 150)
    o = cuattn.attention(*tensors, **given_options)
    np.testing.assert_array_equal(o.numpy(), cuattn.attention(*inputs, **options))
    # Those of a model are read where no gradients are wanted.
    sinks = torch.nn.Parameter(given_options.pop("sinks"))
    with pytest.raises(ArgumentError, match=r"^sinks must be a tensor that requires no gradients"):
        cuattn.attention(*tensors, sinks=sinks, **given_options)
    with torch.no_grad():
        assert torch.equal(cuattn.attention(*tensors, sinks=sinks, **given_options), o)
    hidden = torch.zeros(20, 150, dtype=torch.bool)
    assert not cuattn.attention(*tensors, attn_mask=hidden).any()


@pytest.mark.needs("jax")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_arrays_of_jax(rng, dtype):
    import jax

    cpu = jax.devices("cpu")[0]
    inputs = qkv(rng)
    options = score_options("everything", rng, inputs[0].shape, 150)
    arrays = [jax.device_put(x, cpu) for x in inputs]
    given_options = in_library(options, dtype, lambda x, kind: jax.device_put(x, cpu).astype(kind))
    o = cuattn.attention(*arrays, **given_options)
    np.testing.assert_array_equal(np.asarray(o), cuattn.attention(*inputs, **options))
    hidden = jax.device_put(np.zeros((20, 150), bool), cpu)
    assert not np.asarray(cuattn.attention(*arrays, attn_mask=hidden)).any()
