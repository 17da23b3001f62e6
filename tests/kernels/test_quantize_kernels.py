"""The quantizing kernels against the reference, bit for bit."""

import numpy as np
import pytest
from helpers.arrays_in_memory import (
    DTYPES,
    MEMORY,
    as_float32,
    is_aligned,
    is_long,
    is_padded,
    is_ragged,
    storage,
)
from helpers.gpu_cases import runs_here

import cuattn
from cuattn.operands.layout import CodeLayout
from cuattn.operands.token_order import natural_scale, stored
from cuattn.presets import PRESETS
from cuattn.reference.layout import LOG2_BIAS, pad_head_dim
from cuattn.reference.quantize import quantize, smoothing_vector
from cuattn.reference.smoothing import Q_BLOCK
from cuattn.scheme import Scheme
from cuattn.specs.attention import Scope
from cuattn.specs.coding import stored_scope

pytestmark = pytest.mark.gpu

LENGTHS = (0, 1, 31, 63, 64, 65, 127, 128, 129, 511, 512, 1000)

SCHEMES = {
    **PRESETS,
    "smoothed": Scheme("smoothed", smooth_k="mean", smooth_v="mean"),
    "blocks of 64": Scheme("b64", k_scope="block", pv="fp16", p_range="row", p_block=64),
    "channels": Scheme("channels", pv="fp8", v_scope="channel", p_range="row"),
    "unsmoothed blocks": Scheme("plain", k_scope="block", v_scope="channel", smooth_k="none"),
    "blocks as tokens": Scheme("blocks", q_scope="block", k_scope="block"),
    "smoothed blocks": Scheme("qb", q_scope="block", k_scope="block", smooth_q="block"),
    "sorted, unrotated": Scheme(
        "sorted", k_scope="sorted", v_scope="sorted", smooth_k="mean", smooth_v="mean"
    ),
    "threads": Scheme("threads", q_scope="thread", k_scope="thread", smooth_q="block"),
    "whole heads": Scheme(
        "heads", q_scope="tensor", k_scope="tensor", v_scope="tensor", smooth_k="mean"
    ),
    "heads as tokens": Scheme("tokens", q_scope="tensor", k_scope="tensor", smooth_k="mean"),
    "groups": Scheme("groups", q_scope="group", k_scope="group", qk_group=32, smooth_k="none"),
    "groups of 4 bits": Scheme(
        "groups4", qk="int4", q_scope="group", k_scope="group", smooth_q="block"
    ),
    "values by block": Scheme("values", v_scope="block", p_range="row", smooth_v="mean"),
    "rotated": Scheme(
        "rotated", v_scope="channel", smooth_q="block", smooth_v="mean", rotate="qkv"
    ),
    "scores rotated": Scheme("scores", v_scope="channel", smooth_v="mean", rotate="qk"),
    "rotated 4 bits": Scheme(
        "rotated4",
        qk="int4",
        pv="int4",
        q_scope="thread",
        k_scope="block",
        v_scope="block",
        p_range="row",
        rotate="qkv",
    ),
    "rotated groups": Scheme(
        "turned", q_scope="group", k_scope="group", qk_group=32, smooth_q="block", rotate="qkv"
    ),
}

FP8_WAYS = (("q", "fp8"), ("k", "fp8"), ("v", "fp8"), ("v", "int8-fp8"), ("v", "channels"))
# Every way in which an operand is quantized.
WAYS = (
    ("q", "int8"),
    ("q", "int8-token"),
    ("q", "int4"),
    ("q", "int-flash-int4"),
    ("q", "blocks as tokens"),
    ("q", "smoothed blocks"),
    ("q", "threads"),
    ("q", "whole heads"),
    ("q", "groups"),
    ("q", "groups of 4 bits"),
    ("q", "rotated"),
    ("q", "scores rotated"),
    ("q", "rotated 4 bits"),
    ("q", "rotated groups"),
    ("k", "int8"),
    ("k", "int-flash"),
    ("k", "smoothed"),
    ("k", "int8-block"),
    ("k", "blocks of 64"),
    ("k", "unsmoothed blocks"),
    ("k", "int4"),
    ("k", "blocks as tokens"),
    ("k", "threads"),
    ("k", "whole heads"),
    ("k", "heads as tokens"),
    ("k", "groups"),
    ("k", "groups of 4 bits"),
    ("k", "rotated"),
    ("k", "scores rotated"),
    ("k", "int8-token"),
    ("k", "sorted, unrotated"),
    ("k", "rotated 4 bits"),
    ("k", "rotated groups"),
    ("v", "int8"),
    ("v", "int8-token"),
    ("v", "sorted, unrotated"),
    ("v", "smoothed"),
    ("v", "int8-block"),
    ("v", "unsmoothed blocks"),
    ("v", "int-flash"),
    ("v", "int-flash-int4"),
    ("v", "int-flash-rotated"),
    ("v", "values by block"),
    ("v", "rotated"),
    ("v", "scores rotated"),
    ("v", "rotated 4 bits"),
    ("v", "rotated groups"),
    *((x, name) for x, name in FP8_WAYS if runs_here(SCHEMES[name])),
)
SMOOTHED = (
    ("k", "int8", "sample"),
    ("k", "smoothed", "mean"),
    ("v", "smoothed", "mean"),
    ("v", "int8", "sample"),
    ("v", "int8-block", "robust"),
    ("v", "values by block", "mean"),
    ("k", "whole heads", "mean"),
)
every_way = pytest.mark.parametrize(("operand", "scheme"), WAYS)


def on_gpu(stored, dtype, memory="contiguous"):
    import cupy

    x = MEMORY[memory](stored)(cupy)
    if dtype == "bfloat16":
        import ml_dtypes

        x = x.view(ml_dtypes.bfloat16)
    return x


def on_host(x):
    return x.get()


def width(operand, scheme, head_dim):
    """Return the least head_dim from the wanted one on that has whole groups of channels."""
    how = SCHEMES[scheme]
    group = how.qk_group if operand != "v" and how.k_scope == "group" else 1
    return -(-head_dim // group) * group


def check(x, dtype, operand, scheme, memory="contiguous"):
    """Quantize values [batch, head, token, head_dim]; compare codes, scales and all padding."""
    how = SCHEMES[scheme]
    raw = storage(x, dtype)
    tensor = cuattn.quantize(on_gpu(raw, dtype, memory), operand=operand, scheme=how, layout="HND")
    got = tensor.to_reference()
    x = as_float32(raw, dtype)
    if operand == "q" and how.smooth_q == "block":
        means = on_host(tensor.vector)
        with np.errstate(invalid="ignore", over="ignore"):
            x = x - np.repeat(means, Q_BLOCK, axis=2)[:, :, : x.shape[2]]
    want = quantize(
        x,
        scope=got.scope,
        block=got.block,
        vector=got.vector,
        rotated=how.rotates(operand),
        factor_first=operand == "v",
        to=how.pv if operand == "v" else how.qk,
    )
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scale, want.scale)
    code_layout = CodeLayout.of(how, operand, x.shape, packed=True)
    codes, scale = stored(want, operand, how, code_layout)
    np.testing.assert_array_equal(on_host(tensor.codes), codes)
    check_scale(on_host(tensor.scale), scale, operand, how, x.shape)
    return tensor


def check_scale(found, wanted, operand, how, shape):
    """Compare scales as they are stored, with those that are repeated."""
    of_tensor, of_codes = (natural_scale(x, how, operand, shape) for x in (found, wanted))
    np.testing.assert_array_equal(of_tensor, of_codes)
    scope = stored_scope(how, operand)
    if scope is Scope.channel or (scope is Scope.group and operand == "q"):
        np.testing.assert_array_equal(found, wanted)  # with those of padded channels
    if scope is Scope.sorted:  # with those of places without a token
        of_places = (x if operand == "k" else x[:, :, :, 0] for x in (found, wanted))
        np.testing.assert_array_equal(*of_places)
    if operand == "v" and scope in (Scope.token, Scope.sorted):
        scale, log2, inverse = np.moveaxis(found, 3, 0)
        # The inverse of NaN is 0, so that it stays away from rows that do not see the token.
        expected = np.where(np.isnan(scale), np.float32(0), np.float32(1) / scale)
        np.testing.assert_array_equal(inverse, expected)
        # One ulp of log2f, and of the sum.
        bias = LOG2_BIAS if scope is Scope.token else 0.0
        np.testing.assert_allclose(log2, bias + np.log2(scale), rtol=2.0**-22, atol=2.0**-23)
    elif operand == "k" and scope is not Scope.block:
        # What pads tokens is finite.
        assert np.isfinite(found[np.isfinite(wanted)]).all()


@pytest.mark.covering(head_dim=(pad_head_dim, is_padded))
@every_way
@pytest.mark.parametrize("head_dim", range(8, 257, 8))
def test_every_head_dim_is_bit_exact(rng, operand, scheme, head_dim):
    head_dim = width(operand, scheme, head_dim)
    check(rng.normal(size=(1, 2, 130, head_dim)), "float16", operand, scheme)


@pytest.mark.covering
@every_way
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_bit_exact(rng, operand, scheme, head_dim, dtype):
    head_dim = width(operand, scheme, head_dim)
    x = rng.normal(size=(2, 3, 300, head_dim)) * np.exp(rng.normal(size=(2, 3, 300, 1)))
    check(x + rng.normal(size=(1, 3, 1, head_dim)), dtype, operand, scheme)


@pytest.mark.covering(tokens=(is_ragged, is_long))
@every_way
@pytest.mark.parametrize("tokens", LENGTHS)
def test_every_length_is_bit_exact(rng, operand, scheme, tokens):
    check(rng.normal(size=(2, 2, tokens, 128)), "float16", operand, scheme)


@pytest.mark.parametrize(("operand", "scheme"), [way for way in WAYS if "rotated" in way[1]])
def test_more_tiles_than_run_at_a_time_are_bit_exact(rng, operand, scheme):
    check(rng.normal(size=(2, 30, 3100, 64)), "float16", operand, scheme)


@pytest.mark.covering(memory=is_aligned)
@every_way
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_stride_is_bit_exact(rng, operand, scheme, memory, dtype):
    head_dim = width(operand, scheme, 72)
    check(rng.normal(size=(2, 3, 140, head_dim)), dtype, operand, scheme, memory)


@every_way
def test_layout_nhd(rng, operand, scheme):
    import cupy

    x = cupy.asarray(rng.normal(size=(2, 50, 3, 64)).astype(np.float16))
    nhd = cuattn.quantize(x, operand=operand, scheme=SCHEMES[scheme], layout="NHD")
    hnd = cuattn.quantize(x.transpose(0, 2, 1, 3), operand=operand, scheme=SCHEMES[scheme])
    np.testing.assert_array_equal(on_host(nhd.codes), on_host(hnd.codes))
    np.testing.assert_array_equal(on_host(nhd.scale), on_host(hnd.scale))


@every_way
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_in_its_scope(rng, operand, scheme, dtype):
    x = rng.normal(size=(1, 3, 200, 64))
    x[0, 0, 3, 5] = np.nan
    x[0, 1, 130, 63] = np.inf
    x[0, 1, 140, 62] = -np.inf
    tensor = check(x, dtype, operand, scheme)
    scale = tensor.to_reference().scale.reshape(3, -1)
    assert np.isfinite(scale[2]).all()
    assert not np.isfinite(scale[:2]).all(axis=-1).any()
    if tensor.vector is not None:
        assert np.isfinite(on_host(tensor.vector)).all()


@every_way
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_sizes(rng, operand, scheme, dtype):
    largest = {"float16": 65504.0, "bfloat16": 3.3e38, "float32": 3.4e38}[dtype]
    x = rng.uniform(-1, 1, size=(1, 4, 129, 64))
    x[0, 0, 7] = 0
    x[0, 1] = 0
    x[0, 2] *= 2.0**-120  # below the smallest scale; zero or subnormal in float16
    x[0, 3] *= largest / 4
    check(x, dtype, operand, scheme)


@pytest.mark.parametrize(("operand", "scheme", "kind"), SMOOTHED)
@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 63, 65, 700, 5000, 40_000])
@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [("float16", 80), ("float16", 192), ("float16", 256), ("float32", 32), ("float32", 256)],
)
def test_smoothing_vector_is_the_mean(rng, operand, scheme, kind, dtype, head_dim, tokens):
    x = (rng.normal(size=(1, 4, tokens, head_dim)) + 3).astype(dtype)
    # n float32 additions and a division: each rounds a partial sum of at most n * mean |x|.
    bound = (min(tokens, 512) if kind == "sample" else tokens) * 2.0**-24 * np.abs(x).mean(axis=2)
    x[0, 1, -1] *= 1000
    x[0, 2, tokens // 2, 7] = np.nan
    x[0, 3, : tokens // 5] = -np.inf
    if kind == "mean":
        bound *= 1000  # of the large token
    tensor = cuattn.quantize(on_gpu(x, dtype), operand=operand, scheme=SCHEMES[scheme])
    want = smoothing_vector(x, kind)
    assert (np.abs(on_host(tensor.vector) - want) <= bound + np.spacing(np.abs(want))).all()


@every_way
def test_runs_are_identical(rng, operand, scheme):
    import cupy

    head_dim = width(operand, scheme, 96)
    x = cupy.asarray(rng.normal(size=(2, 8, 3000, head_dim)).astype(np.float16))
    first, *others = (cuattn.quantize(x, operand=operand, scheme=SCHEMES[scheme]) for _ in range(4))
    for other in others:
        for a, b in ((first.codes, other.codes), (first.scale, other.scale)):
            np.testing.assert_array_equal(on_host(a), on_host(b))
        if first.vector is not None:
            np.testing.assert_array_equal(on_host(first.vector), on_host(other.vector))


@pytest.mark.parametrize("memory", ["contiguous", "odd base", "tokens outside heads"])
@pytest.mark.parametrize("head_dim", [40, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["fp16", "int8-fp16"])
def test_values_are_rounded_to_half(rng, scheme, dtype, head_dim, memory):
    # Each query sees one key and nothing of the others, so the output is V as the product takes it.
    eye = np.broadcast_to(128 * np.eye(head_dim), (2, 3, head_dim, head_dim))
    v = storage(rng.normal(size=eye.shape) * 100, dtype)
    q, k = (on_gpu(storage(eye, dtype), dtype, memory) for _ in range(2))
    o = cuattn.attention(q, k, on_gpu(v, dtype, memory), scheme=SCHEMES[scheme], scale=1.0)
    got = o.view(np.uint16).get() if dtype == "bfloat16" else o.get()
    exact = as_float32(v, dtype)
    if scheme == "fp16" and dtype == "bfloat16":
        want = exact
    else:
        want = exact.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got, storage(want, dtype))
