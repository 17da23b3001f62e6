"""`attention` and `quantize` on arrays in host memory, where the scheme is emulated."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from helpers.foreign import Foreign, OnGPU

import cuattn
from cuattn.errors import ArgumentError, NoGPUError
from cuattn.presets import PRESETS
from cuattn.reference import emulate
from cuattn.reference.quantize import operands
from cuattn.reference.smoothing import block_means, products_with_means
from cuattn.scheme import Scheme

SCHEMES = [
    *PRESETS.values(),
    Scheme("mean", smooth_k="mean", smooth_v="mean"),
    Scheme("blocks", q_scope="block", k_scope="block", smooth_q="block", rotate="qkv"),
    Scheme("whole heads", q_scope="tensor", k_scope="tensor", smooth_k="mean"),
]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def qkv(rng, dtype="float32", seqlen_q=20, seqlen_kv=150, head_dim=24):
    shapes = ((2, 4, seqlen_q, head_dim), (2, 2, seqlen_kv, head_dim), (2, 2, seqlen_kv, head_dim))
    return [(rng.standard_normal(shape) + 0.5).astype(dtype) for shape in shapes]


@every_scheme
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_result_is_the_emulation_rounded_once(rng, scheme, dtype, is_causal):
    inputs = qkv(rng, dtype)
    options = {"scheme": scheme, "is_causal": is_causal, "scale": 0.3}
    o, lse = cuattn.attention(*inputs, return_lse=True, **options)
    expected, expected_lse = emulate.attention(*inputs, **options)
    assert (o.dtype, lse.dtype) == (dtype, np.float32)
    np.testing.assert_array_equal(o, expected.astype(dtype))
    np.testing.assert_array_equal(lse, expected_lse.astype(np.float32))
    np.testing.assert_array_equal(o, cuattn.attention(*inputs, **options))


LARGEST = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127")}


def at_the_limit(dtype, scheme):
    """Whether V may be the largest number of a type: sums of a few of them are float32."""
    of_sums = scheme.smooth_v != "none" or scheme.rotates("v") or scheme.pv == "fp16"
    return dtype == "float16" or not of_sums


@pytest.mark.parametrize(
    ("dtype", "scheme"),
    [(d, s) for d in LARGEST for s in SCHEMES if at_the_limit(d, s)],
    ids=lambda x: getattr(x, "name", x),
)
def test_finite_results_stay_finite(rng, dtype, scheme):
    largest = LARGEST[dtype]
    stored = dtype if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    q, k, v = qkv(rng, stored)
    v = (largest * rng.choice([-1.0, 1.0], v.shape)).astype(stored)
    o = cuattn.attention(q, k, v, scheme=scheme, scale=8.0).astype(np.float64)
    assert np.isfinite(o).all()
    wide = [x.astype(np.float32) for x in (q, k, v)]
    expected, _ = emulate.attention(*wide, scheme=scheme, scale=8.0, compute=dtype)
    if scheme.name in PRESETS and scheme.pv != "fp16":
        assert np.abs(expected).max() > largest * (1 + 2.0**-10)  # codes are rounded
    expected = np.clip(expected, -largest, largest).astype(stored)
    np.testing.assert_array_equal(o, expected.astype(np.float64))


def test_infinities_of_inputs_stay(rng):
    q, k, v = qkv(rng, "float16")
    v[0, 0, 7, 3] = np.inf
    o = cuattn.attention(q, k, v, scheme="fp16")
    assert (o[0, :2, :, 3] == np.inf).all()
    assert np.isfinite(np.delete(o, 3, axis=3)).all()
    o = cuattn.attention(q, k, v, scheme="int8-block")
    assert not np.isfinite(o[0, :2, :, 3]).any()


def test_default_scheme_is_int8(rng):
    inputs = qkv(rng)
    np.testing.assert_array_equal(
        cuattn.attention(*inputs), cuattn.attention(*inputs, scheme=PRESETS["int8"])
    )


@every_scheme
def test_layout_nhd_is_the_same_transposed(rng, scheme):
    inputs = qkv(rng)
    o, lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    given = [x.swapaxes(1, 2) for x in inputs]
    nhd, nhd_lse = cuattn.attention(*given, scheme=scheme, layout="NHD", return_lse=True)
    assert nhd.flags.c_contiguous
    np.testing.assert_array_equal(nhd.swapaxes(1, 2), o)
    np.testing.assert_array_equal(nhd_lse, lse)


@every_scheme
def test_bfloat16_is_taken_and_returned(rng, scheme):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    inputs = qkv(rng, ml_dtypes.bfloat16)
    o = cuattn.attention(*inputs, scheme=scheme)
    assert o.dtype == ml_dtypes.bfloat16
    wide = [x.astype(np.float32) for x in inputs]
    expected, _ = emulate.attention(*wide, scheme=scheme, compute="bfloat16")
    np.testing.assert_array_equal(o, expected.astype(ml_dtypes.bfloat16))


def quantized(inputs, scheme):
    """Return what a scheme quantizes of Q, K and V: sorted keys together."""
    arrays = dict(zip("qkv", inputs, strict=True))
    products = {"q": scheme.qk, "k": scheme.qk, "v": scheme.pv}
    tensors = {
        name: cuattn.quantize(x, operand=name, scheme=scheme)
        for name, x in arrays.items()
        if products[name] != "fp16"
    }
    if scheme.k_scope == "sorted":
        pair = cuattn.quantize_kv(arrays["k"], arrays["v"], scheme=scheme)
        tensors |= dict(zip("kv", pair, strict=True))
    return tensors


@every_scheme
def test_quantized_tensors_give_the_same(rng, scheme):
    inputs = qkv(rng)
    whole = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    tensors = quantized(inputs, scheme)
    rounding = 0.05 if scheme.qk == "int8" else 1.0
    for some in ("q", "v", "k", "kv", "qkv"):
        given = [tensors.get(n, x) if n in some else x for n, x in zip("qkv", inputs, strict=True)]
        o, lse = cuattn.attention(*given, scheme=scheme, return_lse=True)
        # What smoothing took from Q is multiplied by the codes of K, if there is nothing else.
        if scheme.smooth_q != "none" and "k" in some:
            ops = operands(*inputs, scheme)
            means, keys = block_means(inputs[0]), tensors["k"].dequantize()
            ops = replace(ops, delta=products_with_means(means, keys, ops.k.vector))
            expected, _ = emulate.emulate(ops, scheme)
            np.testing.assert_allclose(o, expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(lse, whole[1], atol=rounding)
            continue
        np.testing.assert_array_equal(o, whole[0])
        np.testing.assert_allclose(lse, whole[1], atol=rounding if "q" in some else 0)


@every_scheme
def test_quantize_is_the_references(rng, scheme):
    inputs = qkv(rng)
    expected = operands(*inputs, scheme)
    in_order = {}
    if scheme.k_scope == "sorted":
        in_nhd = [x.swapaxes(1, 2) for x in inputs[1:]]
        pair = cuattn.quantize_kv(*in_nhd, scheme=scheme, layout="NHD")
        in_order = dict(zip("kv", pair, strict=True))
    for name, x in zip("qkv", inputs, strict=True):
        product = scheme.pv if name == "v" else scheme.qk
        if product == "fp16":
            with pytest.raises(ArgumentError, match=r"^operand must be one that is quantized"):
                cuattn.quantize(x, operand=name, scheme=scheme)
            continue
        tensor = in_order.get(name) or cuattn.quantize(
            x.swapaxes(1, 2), operand=name, scheme=scheme, layout="NHD"
        )
        found, wanted = tensor.to_reference(), getattr(expected, name)
        assert (tensor.shape, tensor.dtype) == (x.shape, "float32")
        dtype = np.float32 if product == "fp8" else np.int8
        assert (found.scope, found.codes.dtype) == (wanted.scope, dtype)
        assert tensor.codes.dtype == (np.int8 if product == "int8" else np.uint8)
        np.testing.assert_array_equal(found.codes, wanted.codes)
        np.testing.assert_array_equal(found.scale, wanted.scale)
        np.testing.assert_array_equal(found.dequantize(), wanted.dequantize())
        values = wanted.dequantize()
        if name == "q" and scheme.smooth_q != "none":
            np.testing.assert_array_equal(tensor.vector, block_means(x))
            values = values + np.repeat(tensor.vector, 128, axis=2)[:, :, : x.shape[2]]
        np.testing.assert_allclose(tensor.dequantize(), values, atol=1e-5)
        assert tensor.dequantize().dtype == np.float32


def test_quantized_tensor_describes_itself(rng):
    _, k, _ = qkv(rng)
    tensor = cuattn.quantize(k)
    assert tensor.nbytes == tensor.codes.nbytes + tensor.scale.nbytes + tensor.vector.nbytes
    assert repr(tensor) == (
        f"QuantizedTensor(k (2, 2, 150, 24) of float32, scheme 'int8', {tensor.nbytes} bytes in "
        "host memory)"
    )


def test_quantized_tensor_checks_its_fields(rng):
    _, k, _ = qkv(rng)
    t = cuattn.quantize(k)
    fields = {name: getattr(t, name) for name in t.__dataclass_fields__}
    cuattn.QuantizedTensor(**fields)
    for name, value in (
        ("operand", "o"),
        ("scheme", PRESETS["fp16"]),
        ("dtype", "float64"),
        ("shape", (2, 2, 150)),
        ("vector", None),
        ("codes", t.codes[:1]),
        ("codes", t.codes.astype(np.int16)),
        ("scale", t.scale.astype(np.float64)),
        ("scale", np.asfortranarray(t.scale)),
        ("vector", t.vector.swapaxes(1, 2)),
    ):
        with pytest.raises(ArgumentError):
            cuattn.QuantizedTensor(**fields | {name: value})


def test_quantized_tensor_takes_arrays_of_one_library(rng):
    _, k, _ = qkv(rng)
    t = cuattn.quantize(k)
    fields = {name: getattr(t, name) for name in t.__dataclass_fields__}

    class Kept(np.ndarray):
        """As `numpy.memmap` is."""

    same = cuattn.QuantizedTensor(**fields | {"scale": t.scale.view(Kept)})
    np.testing.assert_array_equal(same.dequantize(), t.dequantize())
    for name in ("codes", "scale"):
        with pytest.raises(ArgumentError, match=f"^{name} must be a contiguous array") as error:
            cuattn.QuantizedTensor(**fields | {name: Foreign(getattr(t, name))})
        assert ("of the library of the codes" in str(error.value)) == (name == "scale")


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_quantized_tensor_is_copied(rng, how):
    q, k, v = qkv(rng)
    tensor = cuattn.quantize(k)
    expected = cuattn.attention(q, tensor, v)
    copied = how(tensor)
    assert set(vars(copied)) <= {*tensor.__dataclass_fields__, "_code_layout"}
    np.testing.assert_array_equal(cuattn.attention(q, copied, v), expected)
    if how is not copy.copy:
        tensor.codes.fill(0)
        np.testing.assert_array_equal(cuattn.attention(q, copied, v), expected)


@every_scheme
@pytest.mark.parametrize(("seqlen_q", "seqlen_kv"), [(0, 5), (5, 0), (0, 0)])
def test_empty_lengths(rng, scheme, seqlen_q, seqlen_kv):
    inputs = qkv(rng, seqlen_q=seqlen_q, seqlen_kv=seqlen_kv)
    o, lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    assert o.shape == inputs[0].shape
    assert not o.any()
    assert (lse == -np.inf).all()


def test_empty_operands_are_quantized(rng):
    q, k, v = qkv(rng, seqlen_q=0, seqlen_kv=0)
    for scheme in ("int8", "int8-token", "int8-block", "int-flash", "int8-fp8", "fp8"):
        for name, x in (("q", q), ("k", k), ("v", v)):
            tensor = cuattn.quantize(x, operand=name, scheme=scheme)
            assert tensor.codes.size == 0
            largest = 127 if tensor.codes.dtype == np.int8 else 448
            assert (tensor.scale == np.float32(2.0**-64) / np.float32(largest)).all()
            assert tensor.to_reference().dequantize().size == 0


def test_out_is_written_and_returned(rng):
    q, k, v = qkv(rng)
    expected = cuattn.attention(q, k, v)
    for out in (np.empty_like(q), np.empty((2, 4, 24, 20), np.float32).swapaxes(2, 3)):
        assert cuattn.attention(q, k, v, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_inputs_are_never_written(rng):
    inputs = qkv(rng)
    for x in inputs:
        x.flags.writeable = False
    cuattn.attention(*inputs, is_causal=True)
    for x, name in zip(inputs, "qkv", strict=True):
        cuattn.quantize(x, operand=name)


def test_output_is_refused_before_anything_is_written(rng):
    q, k, v = qkv(rng)
    read_only = np.zeros_like(q)
    read_only.flags.writeable = False
    for out, argument in (
        (read_only, "out"),
        (q, "out"),
        (q[:, ::-1], "out"),
        (np.zeros((2, 4, 20, 16), np.float32), "out.shape"),
        (np.zeros(q.shape, np.float16), "out.dtype"),
        (np.broadcast_to(np.float32(0), q.shape), "out.strides"),
        ("buffer", "out"),
    ):
        before = q.copy()
        with pytest.raises(ArgumentError) as error:
            cuattn.attention(q, k, v, out=out)
        assert error.value.argument == argument
        np.testing.assert_array_equal(q, before)
        assert not read_only.any()


def test_parts_of_a_packed_array_do_not_overlap(rng):
    packed = rng.standard_normal((2, 10, 4, 2, 16)).astype(np.float32)
    q, k, v, o = (packed[:, :, i] for i in range(4))
    expected = cuattn.attention(q, k, v, layout="NHD")
    cuattn.attention(q, k, v, layout="NHD", out=o)
    np.testing.assert_array_equal(packed[:, :, 3], expected)


@pytest.mark.parametrize("which", range(3), ids="qkv")
@pytest.mark.parametrize("poison", [np.nan, -np.inf])
def test_check_finite_names_the_input(rng, which, poison):
    inputs = qkv(rng)
    cuattn.attention(*inputs, check_finite=True)
    inputs[which][0, 0, 3, 3] = poison
    cuattn.attention(*inputs)
    with pytest.raises(ArgumentError, match=f"^{'qkv'[which]} must be without NaN and infinity"):
        cuattn.attention(*inputs, check_finite=True)
    tensors = [cuattn.quantize(x, operand=n) for n, x in zip("qkv", inputs, strict=True)]
    with pytest.raises(ArgumentError, match=f"^{'qkv'[which]} must be without NaN and infinity"):
        cuattn.attention(*tensors, check_finite=True)


def test_wrong_arguments_are_named(rng):
    q, k, v = qkv(rng)
    for call, argument in (
        ({"scheme": "int3"}, "scheme"),
        ({"layout": "BSHD"}, "layout"),
        ({"scale": -1.0}, "scale"),
        ({"is_causal": None}, "is_causal"),
        ({"check_finite": None}, "check_finite"),
        ({"check_finite": 1}, "check_finite"),
        ({"stream": 0}, "stream"),
    ):
        with pytest.raises(ArgumentError) as error:
            cuattn.attention(q, k, v, **call)
        assert error.value.argument == argument
    for given, argument in (
        (([1.0], k, v), "q"),
        ((q, "k", v), "k"),
        ((q, k, None), "v"),
        ((q.astype(np.float64), k, v), "q.dtype"),
        ((q, k, v[:, :, 1:]), "v.shape"),
    ):
        with pytest.raises(ArgumentError) as error:
            cuattn.attention(*given)
        assert error.value.argument == argument
    with pytest.raises(ArgumentError, match=r"^operand must be"):
        cuattn.quantize(k, operand="o")
    with pytest.raises(ArgumentError, match=r"^x must be an array"):
        cuattn.quantize([1.0])


def test_array_on_a_gpu_needs_cupy(monkeypatch):
    from cuattn.arrays import caller

    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    caller.cupy_module.cache_clear()
    with pytest.raises(NoGPUError, match='pip install "cupy-cuda12x'):
        cuattn.attention(OnGPU(), OnGPU(), OnGPU())
    with pytest.raises(NoGPUError):
        cuattn.quantize(OnGPU())
    caller.cupy_module.cache_clear()


def test_arrays_elsewhere_are_refused(rng):
    class OnAnotherKind(OnGPU):
        def __dlpack_device__(self):
            return (10, 0)

    x = OnAnotherKind()
    with pytest.raises(ArgumentError, match=r"^q must be on an NVIDIA GPU or in host memory"):
        cuattn.attention(x, x, x)
    with pytest.raises(ArgumentError, match=r"^x must be on an NVIDIA GPU or in host memory"):
        cuattn.quantize(x)


def test_other_arrays_in_host_memory_are_taken(rng):
    inputs = qkv(rng)
    expected = cuattn.attention(*inputs)
    given = [Foreign(x) for x in inputs]
    np.testing.assert_array_equal(cuattn.attention(*given), expected)
    memory = np.zeros_like(expected)
    out = Foreign(memory)
    assert cuattn.attention(*given, out=out) is out
    np.testing.assert_array_equal(memory, expected)
