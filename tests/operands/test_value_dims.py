"""A head_dim of V that is not that of Q and K, on arrays in host memory: results and refusals."""

import numpy as np
import pytest

import cuattn
from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference import attribute, emulate, exact
from cuattn.reference.masking import operations

PAIRS = [(192, 128), (64, 128), (128, 64), (24, 8), (40, 256)]
every_pair = pytest.mark.parametrize("dims", PAIRS, ids=str)
every_preset = pytest.mark.parametrize("scheme", PRESETS)


def qkv(rng, dims, seqlens=(20, 150)):
    shapes = [(2, 4, seqlens[0], dims[0])]
    shapes += [(2, 2, seqlens[1], head_dim) for head_dim in dims]
    return [(rng.standard_normal(shape) + 0.5).astype(np.float32) for shape in shapes]


@every_pair
@every_preset
@pytest.mark.parametrize("is_causal", [False, True])
def test_result_is_the_emulation(rng, dims, scheme, is_causal):
    inputs = qkv(rng, dims)
    o, lse = cuattn.attention(*inputs, scheme=scheme, is_causal=is_causal, return_lse=True)
    assert o.shape == (2, 4, 20, dims[1])
    wanted, wanted_lse = emulate.attention(*inputs, scheme=scheme, is_causal=is_causal)
    np.testing.assert_array_equal(o, wanted.astype(np.float32))
    np.testing.assert_array_equal(lse, wanted_lse.astype(np.float32))
    truth, truth_lse = exact.attention(*inputs, is_causal=is_causal, scale=dims[0] ** -0.5)
    assert np.abs(o - truth).sum() <= 0.3 * np.abs(truth).sum()
    np.testing.assert_allclose(lse, truth_lse, atol=0.5)


@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int8-block", "fp16"])
def test_channels_of_values_are_attended_each_by_itself(rng, scheme):
    """Scales apart, the first channels are those of a V that has no others."""
    q, k, v = qkv(rng, (64, 128))
    v[..., 64:] = v[..., :64][..., ::-1]  # so that no maximum over channels becomes larger
    how = PRESETS[scheme]
    assert not how.rotates("v")
    wide = cuattn.attention(q, k, v, scheme=scheme)
    np.testing.assert_allclose(
        wide[..., :64], cuattn.attention(q, k, v[..., :64], scheme=scheme), rtol=1e-6
    )
    np.testing.assert_array_equal(wide[..., :64], wide[..., 64:][..., ::-1])


@every_pair
@pytest.mark.parametrize("scheme", [x.name for x in PRESETS.values() if "fp16" not in (x.qk, x.pv)])
def test_quantized_operands_give_the_same(rng, dims, scheme):
    inputs = qkv(rng, dims)
    how = PRESETS[scheme]
    k, v = cuattn.quantize_kv(*inputs[1:], scheme=scheme)
    assert (k.shape[3], v.shape[3]) == dims
    expected = cuattn.attention(*inputs, scheme=scheme)
    if how.smooth_q == "none":
        np.testing.assert_array_equal(cuattn.attention(inputs[0], k, v, scheme=scheme), expected)
    v_alone = cuattn.attention(*inputs[:2], v, scheme=scheme)
    np.testing.assert_array_equal(v_alone, expected)


def test_layouts_and_outputs(rng):
    inputs = qkv(rng, (40, 24))
    o = cuattn.attention(*inputs)
    nhd = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in inputs]
    out = np.full((2, 20, 4, 24), np.nan, np.float32)
    assert cuattn.attention(*nhd, layout="NHD", out=out) is out
    np.testing.assert_array_equal(out.swapaxes(1, 2), o)


def test_auto_takes_it(rng):
    inputs = qkv(rng, (64, 32))
    found = cuattn.attention(*inputs, scheme="auto")
    np.testing.assert_array_equal(found, cuattn.attention(*inputs, scheme="int8"))


def test_errors_and_their_sources(rng):
    inputs = qkv(rng, (64, 32))
    found = cuattn.measure_error(*inputs, scheme="int8")
    assert found.by_source == {
        name: x for name, x in attribute.attribute(*inputs, scheme="int8").items() if name != "all"
    }
    pairs = operations(found.shape, True, 32) / (2 * 96)
    assert operations(found.shape, True) == 4 * 64 * pairs


def raises(argument, *words):
    pattern = ".*".join([rf"^{argument} must be", *words])
    return pytest.raises(ArgumentError, match=pattern)


def test_what_does_not_fit_is_named(rng):
    q, k, v = qkv(rng, (64, 32))
    with raises(r"v\.shape", r"\(2, 2, 150, 64\), the shape of k, but for the last axis"):
        cuattn.attention(q, k, v[:, :, 1:])
    with raises(r"v\.shape", "but for the last axis"):
        cuattn.quantize_kv(k, v[:, :1])
    with raises("head_dim", "multiple of 8", "last axis of v"):
        cuattn.attention(q, k, v[..., :20])
    for head_dim in (64, 24):
        out = np.zeros((2, 4, 20, head_dim), np.float32)
        with raises(r"out\.shape", r"\(2, 4, 20, 32\), the shape of q with the head_dim of v"):
            cuattn.attention(q, k, v, out=out)
        assert not out.any()
    with raises(r"reference\.shape", r"\(2, 4, 20, 32\)"):
        cuattn.measure_error(q, k, v, reference=q)
