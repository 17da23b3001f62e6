"""Masks on a GPU, wherever they lie and whatever they hide."""

import numpy as np
import pytest
from helpers.arrays_in_memory import memories, placed
from helpers.gpu_cases import check, make, on_gpu, on_host, run
from helpers.score_cases import eighths, in_library
from helpers.score_kernels import MASKED, WINDOWED, compile_kernels
from hypothesis import given, note, settings
from hypothesis import strategies as st

from cuattn.presets import PRESETS
from cuattn.reference import exact
from cuattn.specs.rules import MaskKind, Rules

pytestmark = pytest.mark.gpu

SHAPE = (2, 4, 130, 200)
BOTH = Rules(windowed=True, attn_mask=MaskKind.bits)
some_schemes = pytest.mark.parametrize("scheme", ["int8", "fp16"])


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    rules = (*MASKED.values(), WINDOWED, BOTH)
    schemes = PRESETS["int8"], PRESETS["fp16"]
    compile_kernels((how, 64, "float16", (False, x)) for how in schemes for x in rules)


def qkv(rng, dtype="float16", seqlens=SHAPE[2:], head_dim=64):
    inputs = make(rng, batch=2, heads=(4, 2), seqlens=seqlens, head_dim=head_dim)
    return [on_gpu(x, dtype) for x in inputs]


def attend(arrays, scheme, **options):
    return [on_host(x) for x in run(arrays, PRESETS[scheme], **options)]


def same(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        assert x.tobytes() == y.tobytes()


def mask_of(rng, shape, dtype):
    seen = rng.random(shape) < 0.7
    if dtype == "bool":
        return seen
    return np.where(seen, eighths(rng, shape), -np.inf).astype(np.float32)


@some_schemes
@pytest.mark.parametrize("dtype", ["bool", "float16", "bfloat16"])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (3,), (0, 1), (0, 1, 2), (2, 3), (1, 3)])
def test_masks_of_length_1_are_what_they_are_when_expanded(cupy, rng, scheme, dtype, axes):
    shape = [1 if axis in axes else n for axis, n in enumerate(SHAPE)]
    mask, arrays = mask_of(rng, shape, dtype), qkv(rng)
    whole = on_gpu(np.ascontiguousarray(np.broadcast_to(mask, SHAPE)), dtype)
    wanted = attend(arrays, scheme, attn_mask=whole)
    given_mask = on_gpu(mask, dtype)
    same(attend(arrays, scheme, attn_mask=given_mask), wanted)
    while given_mask.shape[0] == 1:
        given_mask = given_mask[0]
    same(attend(arrays, scheme, attn_mask=given_mask), wanted)


def backwards(x):
    return x[..., ::-1, ::-1].copy()[..., ::-1, ::-1]


def apart(x):
    import cupy

    wide = cupy.ones((*x.shape[:2], 2 * x.shape[2], 3 * x.shape[3]), x.dtype)
    wide[..., ::2, 1::3] = x
    return wide[..., ::2, 1::3]


def keys_first(x):
    return x.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0)


def odd(x):
    """Rows that begin anywhere."""
    import cupy

    wide = cupy.ones((*x.shape[:3], x.shape[3] + 3), x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


@some_schemes
@pytest.mark.parametrize("dtype", ["bool", "float16"])
@pytest.mark.parametrize("arrange", [backwards, apart, keys_first, odd])
def test_masks_lie_anywhere(rng, scheme, dtype, arrange):
    mask, arrays = on_gpu(mask_of(rng, SHAPE, dtype), dtype), qkv(rng)
    wanted = attend(arrays, scheme, attn_mask=mask)
    given_mask = arrange(mask)
    assert given_mask.strides != mask.strides
    same(attend(arrays, scheme, attn_mask=given_mask), wanted)
    np.testing.assert_array_equal(on_host(given_mask), on_host(mask))


LEAST = {"float16": -65504.0, "bfloat16": -float.fromhex("0x1.fep127")}
LEAST |= {"float32": float(np.finfo(np.float32).min)}


@some_schemes
@pytest.mark.parametrize("dtype", LEAST)
def test_least_numbers_hide_as_infinities_do(rng, scheme, dtype):
    """And what they hide has no weight at all, however large its value."""
    seen, arrays = rng.random(SHAPE[2:]) < 0.5, qkv(rng)
    seen[5::9] = False
    seen[:, 40] = False
    arrays[2][:, :, 40] = 6e4
    results = []
    for least in (-np.inf, LEAST[dtype]):
        bias = np.where(seen, np.float32(0), np.float32(least))
        results.append(attend(arrays, scheme, attn_mask=on_gpu(bias, dtype)))
    same(*results)
    o, lse = results[0]
    truth, true_lse = exact.attention(*map(on_host, arrays), attn_mask=seen)
    assert not o[:, :, 5::9].any()
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(true_lse))
    if scheme == "fp16":
        np.testing.assert_allclose(o, truth, atol=0.02)


@st.composite
def calls(draw):
    return {
        "scheme": draw(st.sampled_from(["int8", "fp16"])),
        "heads": draw(st.sampled_from([(2, 2), (4, 1), (8, 1)])),
        "seqlens": (draw(st.integers(0, 280)), draw(st.integers(0, 400))),
        "sides": (draw(st.integers(-1, 400)), draw(st.integers(-1, 280))),
        "broadcast": draw(st.tuples(*[st.booleans()] * 4)),
        "memory": draw(memories()),
        "share": draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0])),
        "with_mask": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@settings(max_examples=150)
@given(call=calls())
def test_any_window_and_mask_match_the_emulation(call):
    import cupy

    note(call)
    rng = np.random.default_rng(call["seed"])
    sizes = {key: call[key] for key in ("heads", "seqlens")}
    arrays = [on_gpu(x, "float16") for x in make(rng, batch=2, **sizes)]
    options = {"window_size": call["sides"]}
    if call["with_mask"]:
        whole = (2, call["heads"][0], *call["seqlens"])
        shape = [1 if one else n for one, n in zip(call["broadcast"], whole, strict=True)]
        options["attn_mask"] = rng.random(shape) < call["share"]
    given_options = in_library(
        options, "float32", lambda x, dtype: placed(on_gpu(x, dtype), call["memory"], cupy)
    )
    result = run(arrays, PRESETS[call["scheme"]], **given_options)
    check(result, arrays, PRESETS[call["scheme"]], **options)
