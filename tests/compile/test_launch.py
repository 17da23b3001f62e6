"""Everything between a call and the kernels, with the kernels' part done in NumPy."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

import cuattn
from cuattn.arrays.device import TARGETS
from cuattn.arrays.view import CUDA, View
from cuattn.errors import ArgumentError
from cuattn.plan import pipeline
from cuattn.plan.kernels import supported
from cuattn.presets import PRESETS, resolve
from cuattn.reference import emulate
from cuattn.reference.quantize import operands
from cuattn.reference.smoothing import block_means, products_with_means
from cuattn.scheme import Scheme

pytest.importorskip("cupy")
from simulated_gpu import NUM_SMS, SimulatedGPU, gpu_of

# A GPU for each family of attention kernels.
FAMILIES = {"90a": "attention_wgmma", "80": "attention_mma"}

OWN = [
    Scheme("mean", smooth_k="mean", smooth_v="mean"),
    Scheme("row", k_scope="block", v_scope="tensor", p_range="row", smooth_v="mean"),
    Scheme("half block", k_scope="block", pv="fp16", p_range="row", p_block=64),
    Scheme("blocks", q_scope="block", k_scope="block"),
    Scheme("whole heads", q_scope="tensor", k_scope="tensor", smooth_k="mean"),
    Scheme("groups", q_scope="group", k_scope="group", qk_group=32, smooth_q="block"),
    Scheme(
        "all rotated",
        qk="int4",
        q_scope="block",
        k_scope="thread",
        v_scope="channel",
        smooth_q="block",
        smooth_k="mean",
        smooth_v="mean",
        rotate="qkv",
    ),
]
# Each scheme on each GPU that has kernels of it.
CASES = {
    f"{scheme.name}-{arch}": (arch, scheme)
    for arch in FAMILIES
    for scheme in [*supported(TARGETS[arch]), *OWN]
}
every_scheme = pytest.mark.parametrize(
    ("gpu", "scheme"), CASES.values(), ids=CASES, indirect=["gpu"]
)

# A kernel has the scale in float32, so a P that lies near the middle of two steps may round the
# other way: 1/127 of what one of some hundred keys contributes.
FLIP = 1e-2

# An e4m3 P has steps of up to 1/8 of itself.
FP8_FLIP = 3e-2


@pytest.fixture(params=FAMILIES)
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def qkv(
    rng,
    scheme=None,
    batch=2,
    num_q_heads=4,
    num_kv_heads=2,
    seqlen_q=140,
    seqlen_kv=130,
    head_dim=None,
):
    if head_dim is None:  # one that is padded
        head_dim = 160 if scheme is not None and scheme.k_scope == "group" else 40

    def one(heads, seqlen):
        return rng.standard_normal((batch, heads, seqlen, head_dim)) + rng.standard_normal(head_dim)

    shapes = ((num_q_heads, seqlen_q), (num_kv_heads, seqlen_kv), (num_kv_heads, seqlen_kv))
    return [one(*shape).astype(np.float32) for shape in shapes]


def as_bits(x):
    """Round to bfloat16, as the simulation has it; and the same widened."""
    bits = (np.ascontiguousarray(x).view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)
    return bits.astype(np.uint16), (bits << np.uint32(16)).view(np.float32)


def check(result, inputs, scheme, **options):
    o, lse = result
    expected, expected_lse = emulate.attention(*inputs, scheme=scheme, **options)
    # Half a unit in the last place of float16, and of bfloat16 after widening.
    ulp = {np.uint16: 2.0**-8, np.float16: 2.0**-11, np.float32: 2.0**-24}[o.dtype.type]
    if o.dtype == np.uint16:
        o = (o.astype(np.uint32) << np.uint32(16)).view(np.float32)
    flip = FP8_FLIP if resolve(scheme).pv == "fp8" else FLIP
    np.testing.assert_allclose(o, expected, rtol=1.01 * ulp, atol=flip)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=1e-5)


def misaligned(x):
    """Return the same numbers in rows that begin at odd elements."""
    wide = np.zeros((*x.shape[:3], x.shape[3] + 9), x.dtype)
    view = wide[..., 3 : 3 + x.shape[3]]
    view[...] = x
    return view


def with_columns_apart(x):
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def with_rows_backwards(x):
    return np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]


ARRANGEMENTS = [misaligned, with_columns_apart, with_rows_backwards]


@every_scheme
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_call_reaches_the_kernels_as_meant(gpu, rng, scheme, dtype, is_causal):
    inputs = [x.astype(dtype) for x in qkv(rng, scheme)]
    options = {"is_causal": is_causal, "scale": 0.2}
    o, lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True, **options)
    assert o.dtype == dtype
    assert lse.dtype == np.float32
    check((o, lse), inputs, scheme, **options)
    # Scales of groups are for one family.
    family = "attention_mma" if scheme.k_scope == "group" else FAMILIES[gpu.device.arch]
    assert gpu.specs[-1].function == family


@every_scheme
def test_bfloat16_reaches_the_kernels(gpu, rng, scheme):
    bits, values = zip(*(as_bits(x) for x in qkv(rng, scheme)), strict=True)
    result = cuattn.attention(*bits, scheme=scheme, return_lse=True)
    check(result, values, scheme, compute="bfloat16")


@every_scheme
@pytest.mark.parametrize("head_dim", [8, 96, 104, 256])
def test_head_dims_are_padded(gpu, rng, scheme, head_dim):
    inputs = qkv(rng, head_dim=head_dim, seqlen_q=3, seqlen_kv=5)
    if scheme.k_scope == "group" and head_dim % scheme.qk_group:
        with pytest.raises(ArgumentError, match=r"^head_dim must be whole groups"):
            cuattn.attention(*inputs, scheme=scheme)
        return
    result = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    check(result, inputs, scheme)


@pytest.mark.covering
@every_scheme
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("which", range(3), ids="qkv")
def test_strides_are_followed(gpu, rng, scheme, arrange, which):
    inputs = [x.astype(np.float16) for x in qkv(rng, scheme)]
    inputs[which] = arrange(inputs[which])
    result = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    check(result, inputs, scheme)


def broadcast_heads(x):
    return np.broadcast_to(x[:, :1], x.shape)


def broadcast_batch(x):
    return np.broadcast_to(x[:1], x.shape)


def rows_that_overlap(x):
    """Row i + 1 begins in the middle of row i, as the windows of a signal do."""
    batch, heads, tokens, head_dim = x.shape
    step = head_dim // 2 // 8 * 8
    flat = np.resize(x, batch * heads * (tokens * step + head_dim))
    strides = (heads * tokens * step, tokens * step, step, 1)
    return np.lib.stride_tricks.as_strided(flat, x.shape, [n * x.itemsize for n in strides])


UNMAPPED = [broadcast_heads, broadcast_batch, rows_that_overlap]


@pytest.mark.parametrize("scheme", [PRESETS["fp16"], PRESETS["int8-fp16"]], ids=lambda s: s.name)
@pytest.mark.parametrize("arrange", UNMAPPED)
@pytest.mark.parametrize("which", range(3), ids="qkv")
def test_values_are_copied_only_where_no_map_can_describe_them(gpu, rng, scheme, arrange, which):
    inputs = [x.astype(np.float16) for x in qkv(rng)]
    copied = ["quantize"] if scheme.qk == "int8" else []
    cuattn.attention(*inputs, scheme=scheme)
    assert [name for name in gpu.launched if name == "quantize"] == copied
    inputs[which] = arrange(inputs[which])
    gpu.launched.clear()
    result = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    check(result, inputs, scheme)
    if gpu.device.arch == "90a":
        copied = ["quantize"]
    assert [name for name in gpu.launched if name == "quantize"] == copied


def test_ctas_of_the_hopper_family_are_no_more_than_multiprocessors(monkeypatch, rng):
    gpu = SimulatedGPU(monkeypatch)
    for heads in (1, 3 * NUM_SMS):
        # The simulated kernel checks the number of CTAs and of items.
        inputs = qkv(rng, batch=1, num_q_heads=heads, num_kv_heads=1, seqlen_q=3, seqlen_kv=5)
        result = cuattn.attention(*inputs, return_lse=True)
        check(result, inputs, "int8")
    assert gpu.launched.count("attention") == 2


def test_integer_sums_are_left_where_they_might_overflow(monkeypatch, rng):
    gpu = SimulatedGPU(monkeypatch)
    monkeypatch.setattr(pipeline, "INTEGER_O_KEYS", 300)
    for seqlen_kv, fits in ((300, True), (301, False)):
        inputs = qkv(rng, seqlen_kv=seqlen_kv)
        result = cuattn.attention(*inputs, scheme="int8-fast", return_lse=True)
        check(result, inputs, "int8-fast")
        assert gpu.specs[-1].integer_o is fits


@every_scheme
def test_layout_nhd(gpu, rng, scheme):
    inputs = [x.astype(np.float16) for x in qkv(rng, scheme)]
    given = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in inputs]
    o, lse = cuattn.attention(*given, scheme=scheme, layout="NHD", return_lse=True)
    assert o.shape == given[0].shape
    check((o.swapaxes(1, 2), lse), inputs, scheme)


@every_scheme
def test_long_inputs_take_statistics_in_two_steps(gpu, rng, scheme):
    inputs = qkv(rng, scheme, batch=1, num_q_heads=1, num_kv_heads=1, seqlen_q=2, seqlen_kv=3000)
    result = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    check(result, inputs, scheme)
    whole_k = scheme.smooth_k == "mean" or scheme.k_scope == "tensor"
    by_channel = scheme.v_scope in ("channel", "tensor")
    whole_v = scheme.smooth_v == "mean" or (scheme.pv != "fp16" and by_channel)
    assert ("stats_finish" in gpu.launched) == (whole_k or whole_v)


def quantized(inputs, scheme, layout="HND"):
    """Return tensors by name of what a scheme quantizes of Q, K and V; of sorted keys a pair."""
    product = {"q": scheme.qk, "k": scheme.qk, "v": scheme.pv}
    arrays = dict(zip("qkv", inputs, strict=True))
    options = {"scheme": scheme, "layout": layout}
    if scheme.k_scope == "sorted":
        pair = cuattn.quantize_kv(arrays.pop("k"), arrays.pop("v"), **options)
        return quantized_alone(arrays, product, options) | dict(zip("kv", pair, strict=True))
    return quantized_alone(arrays, product, options)


def quantized_alone(arrays, product, options):
    return {
        name: cuattn.quantize(x, operand=name, **options)
        for name, x in arrays.items()
        if product[name] != "fp16"
    }


@every_scheme
def test_quantized_tensors_serve_instead_of_arrays(gpu, rng, scheme):
    inputs = [x.astype(np.float16) for x in qkv(rng, scheme)]
    whole = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    tensors = quantized(inputs, scheme)
    # Q's own rounding takes part in the correction if only its codes are there.
    rounding = 0.1 if scheme.qk == "int8" else 2.0
    for some in ("k", "v", "kv", "q", "qk", "qkv"):
        given = [tensors.get(n, x) if n in some else x for n, x in zip("qkv", inputs, strict=True)]
        o, lse = cuattn.attention(*given, scheme=scheme, return_lse=True)
        if scheme.smooth_q != "none" and "k" in some:
            # What smoothing took from Q is multiplied by the codes of K.
            expected = with_keys(inputs, tensors["k"].dequantize(), scheme)
            np.testing.assert_allclose(o, expected, rtol=2.0**-10, atol=FLIP)
            np.testing.assert_allclose(lse, whole[1], atol=rounding)
            continue
        np.testing.assert_array_equal(o, whole[0])
        np.testing.assert_allclose(lse, whole[1], atol=rounding if "q" in some else 0)
    # Of the last, all of them.
    np.testing.assert_array_equal(o, cuattn.attention(*given, scheme=scheme))


def with_keys(inputs, keys, scheme):
    """Return the emulation's output, with the means of Q's blocks multiplied by other keys."""
    ops = operands(*inputs, scheme)
    delta = products_with_means(block_means(inputs[0]), keys, ops.k.vector)
    return emulate.emulate(replace(ops, delta=delta), scheme)[0]


@every_scheme
def test_quantized_tensor_is_what_the_reference_quantizes(gpu, rng, scheme):
    inputs = qkv(rng, scheme)
    expected = operands(*inputs, scheme)
    tensors = quantized([np.swapaxes(x, 1, 2) for x in inputs], scheme, "NHD")
    for name, x in zip("qkv", inputs, strict=True):
        if (scheme.pv if name == "v" else scheme.qk) != "fp16":
            tensor = tensors[name]
            found, wanted = tensor.to_reference(), getattr(expected, name)
            np.testing.assert_array_equal(found.codes, wanted.codes)
            np.testing.assert_array_equal(found.scale, wanted.scale)
            assert (found.scope, found.rotated) == (wanted.scope, wanted.rotated)
            assert (found.vector is None) == (wanted.vector is None)
            if found.vector is not None:
                np.testing.assert_array_equal(found.vector, wanted.vector)
            values = wanted.dequantize()
            if name == "q" and scheme.smooth_q != "none":
                means = block_means(x)
                np.testing.assert_array_equal(tensor.vector, means)
                values = values + np.repeat(means, 128, axis=2)[:, :, : x.shape[2]]
            np.testing.assert_allclose(tensor.dequantize(), values, atol=4e-6)


@every_scheme
def test_nothing_is_launched_without_keys_or_queries(gpu, rng, scheme):
    for sizes in ({"seqlen_kv": 0}, {"seqlen_q": 0}, {"batch": 0}):
        q, k, v = qkv(rng, scheme, **sizes)
        o, lse = cuattn.attention(q, k, v, scheme=scheme, return_lse=True)
        assert o.shape == q.shape
        assert not o.any()
        assert (lse == -np.inf).all()
        assert lse.shape == q.shape[:3]
    assert gpu.launched == []


@every_scheme
def test_out_is_written_whatever_its_strides(gpu, rng, scheme):
    inputs = [x.astype(np.float16) for x in qkv(rng, scheme)]
    expected = cuattn.attention(*inputs, scheme=scheme)
    for arrange in (np.array, *ARRANGEMENTS):
        out = arrange(np.full_like(inputs[0], np.nan))
        assert cuattn.attention(*inputs, scheme=scheme, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_out_must_lie_apart_from_the_inputs(gpu, rng):
    packed = rng.standard_normal((2, 64, 4, 2, 64)).astype(np.float16)
    q, k, v, o = (packed[:, :, i] for i in range(4))
    before = packed.copy()
    cuattn.attention(q, k, v, layout="NHD", out=o)
    np.testing.assert_array_equal(packed[:, :, :3], before[:, :, :3])
    for out in (q, k, v, packed[:, :, 1], packed.reshape(2, 64, 8, 64)[:, :, 3:5]):
        with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of [qkv]"):
            cuattn.attention(q, k, v, layout="NHD", out=out)


def test_out_must_be_writable(gpu, rng):
    q, k, v = qkv(rng)
    out = np.empty_like(q)
    out.flags.writeable = False
    with pytest.raises(ArgumentError, match=r"^out must be writable"):
        cuattn.attention(q, k, v, out=out)


@pytest.mark.parametrize("which", range(3), ids="qkv")
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_check_finite_names_the_input(gpu, rng, which, poison):
    inputs = qkv(rng)
    cuattn.attention(*inputs, check_finite=True)
    tensors = [cuattn.quantize(x, operand=n) for n, x in zip("qkv", inputs, strict=True)]
    cuattn.attention(*tensors, check_finite=True)
    inputs[which][1, 1, 2, 3] = poison
    tensors[which] = cuattn.quantize(inputs[which], operand="qkv"[which])
    launched = len(gpu.launched)
    for given in (inputs, tensors):
        with pytest.raises(ArgumentError, match=f"^{'qkv'[which]} must be without NaN"):
            cuattn.attention(*given, check_finite=True)
    assert len(gpu.launched) == launched


def test_calls_of_a_kind_are_prepared_once(gpu, rng):
    from cuattn.plan.prepared import prepare

    for _ in range(3):
        cuattn.attention(*qkv(rng))
    assert prepare.cache_info().misses == 1


def test_unhashable_options_are_named(gpu, rng):
    q, k, v = qkv(rng)
    for name, value in (("scale", [0.5]), ("scheme", ["int8"]), ("layout", []), ("is_causal", {})):
        with pytest.raises(ArgumentError, match=f"^{name} must be"):
            cuattn.attention(q, k, v, **{name: value})


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "replace": replace,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_reads_its_own_memory(gpu, rng, how):
    inputs = qkv(rng)
    tensors = [cuattn.quantize(x, operand=n) for n, x in zip("qkv", inputs, strict=True)]
    # The call asks for addresses, device and signature, all of which are remembered.
    expected = cuattn.attention(*tensors)
    copies = [COPIES[how](tensor) for tensor in tensors]
    for tensor, copied in zip(tensors, copies, strict=True):
        assert type(copied) is cuattn.QuantizedTensor
        # Codes and a scale as another call may write them where the original's memory was.
        fresh = {name: np.array(getattr(copied, name)) for name in ("codes", "scale")}
        if how == "deepcopy":
            tensor.codes.fill(1)
            tensor.scale.fill(1)
        for name, array in fresh.items():
            np.testing.assert_array_equal(getattr(copied, name), array)
        owned = (copied.codes, copied.scale, copied.vector)
        assert copied.addresses == tuple(0 if x is None else x.ctypes.data for x in owned)
        assert (copied.device, copied.signature) == (tensor.device, tensor.signature)
    np.testing.assert_array_equal(cuattn.attention(*copies), expected)


def test_a_quantized_tensor_without_memory_is_refused(gpu, rng, monkeypatch):
    q, k, v = qkv(rng)
    tensor = copy.copy(cuattn.quantize(k))
    monkeypatch.setattr(
        "cuattn.operands.quantized.view_cupy",
        lambda x: View(0, x.shape, (), x.dtype.name, (CUDA, 0), False, x),
    )
    launched = len(gpu.launched)
    with pytest.raises(ArgumentError, match=r"^codes must be .*its address is 0"):
        cuattn.attention(q, tensor, v)
    assert len(gpu.launched) == launched


@pytest.mark.parametrize("name", ["codes", "scale", "vector"])
def test_a_quantized_tensor_at_an_odd_address_is_refused(gpu, rng, name):
    """As part of a buffer of the caller's: kernels load vectors of 16 bytes."""
    q, k, v = qkv(rng)
    tensor = cuattn.quantize(k)
    x = getattr(tensor, name)
    buffer = np.zeros(x.nbytes + 32, np.uint8)
    first = -buffer.ctypes.data % 16 + 4
    odd = buffer[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    odd[...] = x
    moved = replace(tensor, **{name: odd})
    launched = len(gpu.launched)
    with pytest.raises(ArgumentError, match=rf"^{name} must be at a multiple of 16 bytes"):
        cuattn.attention(q, moved, v)
    assert len(gpu.launched) == launched


@pytest.mark.parametrize("wrong", [None, 1, 0, "no", np.ones(2)])
def test_check_finite_is_true_or_false(gpu, rng, wrong):
    with pytest.raises(ArgumentError, match=r"^check_finite must be True or False"):
        cuattn.attention(*qkv(rng), check_finite=wrong)
    assert not gpu.launched
    cuattn.attention(*qkv(rng), check_finite=np.bool_(False))
