"""K and V whose keys are sorted: made together or one by one, taken apart, put together wrongly."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest

import cuattn
from cuattn.errors import ArgumentError
from cuattn.operands.layout import CodeLayout
from cuattn.operands.token_order import stored
from cuattn.reference.sorting import COLUMN_OF_PLACE


def arrays(n, heads=2, d=32, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(size=(2, 1, heads, n, 1))
    return (sizes * rng.standard_normal((2, 1, heads, n, d))).astype(np.float16)


@pytest.fixture(params=[1, 100, 128, 300])
def qkv(request):
    k, v = arrays(request.param)
    q = np.random.default_rng(1).standard_normal((1, 4, 5, 32)).astype(np.float16)
    return q, k, v


def test_together_they_are_what_attention_makes_of_arrays(qkv):
    q, k, v = qkv
    kq, vq = cuattn.quantize_kv(k, v)
    np.testing.assert_array_equal(cuattn.attention(q, kq, vq), cuattn.attention(q, k, v))
    assert kq.order is vq.order


def test_with_one_of_two_the_other_takes_its_order(qkv):
    q, k, v = qkv
    kq, vq = cuattn.quantize_kv(k, v)
    expected = cuattn.attention(q, k, v)
    np.testing.assert_array_equal(cuattn.attention(q, kq, v), expected)
    np.testing.assert_array_equal(cuattn.attention(q, k, vq), expected)


def test_one_by_one_they_are_in_their_natural_order(qkv):
    q, k, v = qkv
    kq, vq = cuattn.quantize(k, operand="k"), cuattn.quantize(v, operand="v")
    assert kq.order is None
    assert vq.order is None
    alone = cuattn.attention(q, kq, vq)
    np.testing.assert_array_equal(cuattn.attention(q, kq, v), alone)
    np.testing.assert_array_equal(cuattn.attention(q, k, vq), alone)


def test_an_order_of_their_own_is_more_accurate_than_none():
    k, v = arrays(1024)
    for one, other in zip((k, v), cuattn.quantize_kv(k, v), strict=True):
        alone = cuattn.quantize(one, operand=other.operand)
        errors = [np.abs(x.dequantize() - one.astype(np.float32)).mean() for x in (other, alone)]
        assert errors[0] < errors[1]


def test_values_come_back(qkv):
    _, k, v = qkv
    for array, made in zip((k, v), cuattn.quantize_kv(k, v), strict=True):
        reference = made.to_reference()
        np.testing.assert_allclose(reference.dequantize(), made.dequantize(), atol=1e-5)
        # Half a step of each code; rotation, if there is one, leaves the norm of a row as it is.
        error = np.linalg.norm(made.dequantize() - array.astype(np.float32), axis=-1)
        assert (error <= 0.51 * reference.scale * array.shape[3] ** 0.5 + 1e-6).all()


def test_memory_and_reference_are_the_same_both_ways(qkv):
    _, k, v = qkv
    for made in cuattn.quantize_kv(k, v):
        layout = CodeLayout.of(made.scheme, made.operand, made.shape, packed=True)
        codes, scale = stored(made.to_reference(), made.operand, made.scheme, layout)
        np.testing.assert_array_equal(codes, made.codes)
        np.testing.assert_array_equal(scale, made.scale)


def test_codes_lie_in_the_columns_of_their_places():
    k, v = arrays(128, heads=1)
    kq, vq = cuattn.quantize_kv(k, v)
    natural = kq.to_reference().codes[0, 0]
    for place, token in enumerate(kq.order[0, 0, 0]):
        column = COLUMN_OF_PLACE[place]
        np.testing.assert_array_equal(kq.codes[0, 0, column], natural[token])
        scope = 4 * (place // 32) + np.searchsorted([2, 14, 28], place % 32, side="right")
        assert kq.scale[0, 0, 0, scope] == kq.to_reference().scale[0, 0, token]
        assert vq.scale[0, 0, 0, 0, scope] == vq.to_reference().scale[0, 0, token]


def test_two_pairs_do_not_mix(qkv):
    q, k, v = qkv
    kq, _ = cuattn.quantize_kv(k, v)
    vq = cuattn.quantize(v, operand="v")
    with pytest.raises(ArgumentError, match=r"v .*quantize_kv"):
        cuattn.attention(q, kq, vq)
    if k.shape[2] > 1:
        _, other = cuattn.quantize_kv(v, k)
        with pytest.raises(ArgumentError, match="quantize_kv"):
            cuattn.attention(q, kq, other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_pair_are_a_pair(qkv, duplicate):
    q, k, v = qkv
    pair = cuattn.quantize_kv(k, v)
    kq, vq = duplicate(pair)
    np.testing.assert_array_equal(cuattn.attention(q, kq, vq), cuattn.attention(q, *pair))


def test_other_schemes_make_the_same_together_and_one_by_one():
    k, v = arrays(200)
    for name in ("int8-token", "int8-block", "sage2-8"):
        for array, made in zip((k, v), cuattn.quantize_kv(k, v, scheme=name), strict=True):
            alone = cuattn.quantize(array, operand=made.operand, scheme=name)
            np.testing.assert_array_equal(made.codes, alone.codes)
            np.testing.assert_array_equal(made.scale, alone.scale)


def test_a_scheme_that_leaves_v_as_it_is_is_refused():
    k, v = arrays(8)
    with pytest.raises(ArgumentError, match="quantizes v"):
        cuattn.quantize_kv(k, v, scheme="int8-fp16")


def test_k_and_v_of_different_shapes_are_refused():
    k, v = arrays(8)
    with pytest.raises(ArgumentError, match=r"v\.shape"):
        cuattn.quantize_kv(k, v[:, :, :7])
    with pytest.raises(ArgumentError, match=r"v\.dtype"):
        cuattn.quantize_kv(k, v.astype(np.float32))
    with pytest.raises(ArgumentError, match="stream"):
        cuattn.quantize_kv(k, v, stream=1)


def test_an_order_must_fit():
    k, v = arrays(128)
    kq, _ = cuattn.quantize_kv(k, v)
    fields = [kq.codes, kq.scale, kq.vector, "k", kq.scheme, kq.shape, kq.dtype]
    with pytest.raises(ArgumentError, match="order"):
        cuattn.QuantizedTensor(*fields, kq.order[..., :64])
    other = cuattn.quantize(k, operand="k", scheme="int8-token")
    fields = [other.codes, other.scale, other.vector, "k", other.scheme, other.shape, other.dtype]
    with pytest.raises(ArgumentError, match="no tokens are sorted"):
        cuattn.QuantizedTensor(*fields, kq.order)


@pytest.mark.parametrize("value", [0, 200])
def test_an_order_has_every_token_of_a_block_once(value):
    k, v = arrays(128)
    kq, _ = cuattn.quantize_kv(k, v)
    with pytest.raises(ArgumentError, match="each of 0 to 127 once"):
        dataclasses.replace(kq, order=np.full_like(kq.order, value))


def test_what_is_quantized_already_is_not_quantized_again():
    k, v = arrays(8)
    _, vq = cuattn.quantize_kv(k, v)
    with pytest.raises(ArgumentError, match=r"^v "):
        cuattn.quantize_kv(k, vq)


def test_a_scheme_of_an_earlier_version_is_refused_as_it_is_unpickled():
    scheme = dataclasses.replace(cuattn.PRESETS["int8"])
    scheme.__dict__["rotate"] = False
    with pytest.raises(ArgumentError, match=r"scheme\.rotate"):
        pickle.loads(pickle.dumps(scheme))
    del scheme.__dict__["rotate"]
    with pytest.raises(ArgumentError, match="pickled by this version"):
        copy.deepcopy(scheme)


def test_infinite_scales_give_no_warning():
    k, v = arrays(16)
    v[0, 0, 3, 0] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kq, vq = cuattn.quantize_kv(k, v)
        vq.dequantize()
        q = np.ones((1, 2, 4, 32), np.float32)
        o, lse = cuattn.attention(q, kq, vq, scale=0.0, return_lse=True)
    assert np.isnan(o).any()
    assert lse.shape == (1, 2, 4)
