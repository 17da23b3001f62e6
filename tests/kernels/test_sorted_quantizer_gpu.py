"""K and V whose keys are sorted, quantized together: order, codes and scales, bit for bit."""

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
from helpers.gpu_cases import on_gpu as rounded_on_gpu
from helpers.gpu_cases import on_host

import cuattn
from cuattn.operands.layout import CodeLayout
from cuattn.operands.token_order import stored
from cuattn.presets import PRESETS
from cuattn.reference.layout import pad_head_dim
from cuattn.reference.quantize import quantize, scope_of
from cuattn.reference.quantized import token_amax
from cuattn.reference.sorting import sorted_order
from cuattn.scheme import Scheme

pytestmark = pytest.mark.gpu

SORTED = {"k_scope": "sorted", "v_scope": "sorted"}
SCHEMES = {
    "int8": PRESETS["int8"],
    "unrotated": Scheme("unrotated", **SORTED, smooth_v="sample"),
    "means": Scheme("means", **SORTED, smooth_k="mean", smooth_v="mean", rotate="qk"),
    "bare": Scheme("bare", **SORTED, smooth_k="none"),
    "rotated only": Scheme("rotated only", **SORTED, smooth_k="none", rotate="qk"),
}
LENGTHS = (1, 7, 31, 63, 64, 65, 121, 127, 128, 129, 511, 512, 1000)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def on_gpu(raw, dtype, memory):
    import cupy

    x = MEMORY[memory](raw)(cupy)
    if dtype == "bfloat16":
        import ml_dtypes

        x = x.view(ml_dtypes.bfloat16)
    return x


def pair_of(rng, *shape):
    """Return K and V whose tokens differ in size, by a factor that is not the same for both."""
    sizes = rng.lognormal(size=(2, *shape[:3], 1))
    k, v = sizes * rng.standard_normal((2, *shape)) + rng.standard_normal((2, 1, 1, 1, shape[3]))
    return k, v


def wanted(values, tensors, how):
    """Return what the reference makes of K and V, given the GPU's own smoothing vectors."""
    vectors = [None if x.vector is None else on_host(x.vector) for x in tensors]
    amax = [
        token_amax(x, vector, how.rotates(t.operand))
        for x, vector, t in zip(values, vectors, tensors, strict=True)
    ]
    order = sorted_order(*amax)
    made = [
        quantize(
            x,
            scope=scope_of(t.operand, "sorted"),
            vector=vector,
            rotated=how.rotates(t.operand),
            order=order,
        )
        for x, vector, t in zip(values, vectors, tensors, strict=True)
    ]
    return order, made


def check(k, v, dtype, scheme, memory="contiguous"):
    """Quantize K and V together; compare order, codes and scales with all their padding."""
    how = SCHEMES[scheme]
    raw = [storage(x, dtype) for x in (k, v)]
    tensors = cuattn.quantize_kv(*(on_gpu(x, dtype, memory) for x in raw), scheme=how)
    assert tensors[0].order is tensors[1].order
    values = [as_float32(x, dtype) for x in raw]
    order, made = wanted(values, tensors, how)
    np.testing.assert_array_equal(on_host(tensors[0].order), order)
    for tensor, quantized in zip(tensors, made, strict=True):
        found = tensor.to_reference()
        np.testing.assert_array_equal(found.codes, quantized.codes)
        np.testing.assert_array_equal(found.scale, quantized.scale)
        layout = CodeLayout.of(how, tensor.operand, tensor.shape, packed=True)
        codes, scale = stored(quantized, tensor.operand, how, layout)
        np.testing.assert_array_equal(on_host(tensor.codes), codes)
        check_scale(on_host(tensor.scale), scale, tensor.operand)
    return tensors


def check_scale(found, scale, operand):
    """Compare scales in memory, those of places without a token as well."""
    if operand == "k":
        np.testing.assert_array_equal(found, scale)
        return
    of_values, log2, inverse = np.moveaxis(found, 3, 0)
    np.testing.assert_array_equal(of_values, scale[:, :, :, 0])
    with np.errstate(invalid="ignore"):
        # One ulp of log2f, that of the largest where the scale is close to 1.
        np.testing.assert_allclose(log2, np.log2(of_values), rtol=2.0**-22, atol=2.0**-23)
        # The inverse of NaN is 0, so that it stays away from rows that do not see its tokens.
        expected = np.where(np.isnan(of_values), np.float32(0), np.float32(1) / of_values)
    np.testing.assert_array_equal(inverse, expected)


@pytest.mark.covering(head_dim=(pad_head_dim, is_padded))
@every_scheme
@pytest.mark.parametrize("head_dim", range(8, 257, 8))
def test_every_head_dim_is_bit_exact(rng, scheme, head_dim):
    check(*pair_of(rng, 1, 2, 130, head_dim), "float16", scheme)


@pytest.mark.covering
@every_scheme
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_bit_exact(rng, scheme, head_dim, dtype):
    check(*pair_of(rng, 2, 3, 300, head_dim), dtype, scheme)


@pytest.mark.covering(tokens=(is_ragged, is_long))
@every_scheme
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_length_is_bit_exact(rng, scheme, tokens, head_dim):
    check(*pair_of(rng, 2, 2, tokens, head_dim), "float16", scheme)


@every_scheme
@pytest.mark.parametrize("head_dim", [64, 128])
def test_more_blocks_than_run_at_a_time_are_bit_exact(rng, scheme, head_dim):
    check(*pair_of(rng, 2, 15, 3100, head_dim), "float16", scheme)


@pytest.mark.covering(memory=is_aligned)
@every_scheme
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_stride_is_bit_exact(rng, scheme, memory, dtype):
    check(*pair_of(rng, 2, 3, 140, 72), dtype, scheme, memory)


@every_scheme
def test_tokens_of_one_size_keep_their_order(scheme):
    """Ties are broken by the numbers of the tokens."""
    rows = np.ones((1, 1, 200, 64))
    k, v = rows, rows * np.where(np.arange(200) % 2, 1, -1)[:, None]
    check(k, v, "float16", scheme)


@every_scheme
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_is_the_largest(rng, scheme, dtype):
    k, v = pair_of(rng, 1, 4, 200, 64)
    k[0, 0, 3, 5] = v[0, 0, 100, 6] = np.nan
    k[0, 1, 130, 63] = v[0, 2, 130, 1] = np.inf
    k[0, 2, 140, 62] = -np.inf
    tensors = check(k, v, dtype, scheme)
    for tensor, heads in zip(tensors, ([0, 1, 2], [0, 2]), strict=True):
        bad = ~np.isfinite(tensor.to_reference().scale[0]).all(axis=-1)
        np.testing.assert_array_equal(np.flatnonzero(bad), heads)


@every_scheme
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_sizes(rng, scheme, dtype):
    largest = {"float16": 65504.0, "bfloat16": 3.3e38, "float32": 3.4e38}[dtype]
    k, v = rng.uniform(-1, 1, size=(2, 1, 4, 129, 64))
    for x in (k, v):
        x[0, 0, 7] = 0
        x[0, 1] = 0
        x[0, 2] *= 2.0**-120  # below the smallest scale; zero or subnormal in float16
        x[0, 3] *= largest / 4
    check(k, v, dtype, scheme)


@every_scheme
def test_layout_nhd(rng, scheme):
    arrays = [x.astype(np.float16) for x in pair_of(rng, 2, 3, 150, 64)]
    hnd = cuattn.quantize_kv(
        *(rounded_on_gpu(x, "float16") for x in arrays), scheme=SCHEMES[scheme]
    )
    given = (rounded_on_gpu(np.ascontiguousarray(x.swapaxes(1, 2)), "float16") for x in arrays)
    nhd = cuattn.quantize_kv(*given, scheme=SCHEMES[scheme], layout="NHD")
    for x, y in zip(nhd, hnd, strict=True):
        for name in ("codes", "scale", "order"):
            np.testing.assert_array_equal(on_host(getattr(x, name)), on_host(getattr(y, name)))


@every_scheme
def test_runs_are_identical(rng, scheme):
    k, v = (rounded_on_gpu(x, "float16") for x in pair_of(rng, 2, 8, 3000, 96))
    first, *others = (cuattn.quantize_kv(k, v, scheme=SCHEMES[scheme]) for _ in range(4))
    for other in others:
        for x, y in zip(first, other, strict=True):
            for name in ("codes", "scale", "order"):
                np.testing.assert_array_equal(on_host(getattr(x, name)), on_host(getattr(y, name)))


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("tokens", [100, 128, 300])
def test_the_other_one_takes_the_order_of_a_tensor(rng, scheme, is_causal, tokens):
    """Of a pair either may be an array again; alone, both are in their natural order."""
    how = SCHEMES[scheme]
    q = rounded_on_gpu(rng.standard_normal((1, 4, 150, 64)), "float16")
    k, v = (rounded_on_gpu(x, "float16") for x in pair_of(rng, 1, 2, tokens, 64))
    options = {"scheme": how, "is_causal": is_causal}
    expected = on_host(cuattn.attention(q, k, v, **options))
    kq, vq = cuattn.quantize_kv(k, v, scheme=how)
    for given in ((kq, vq), (kq, v), (k, vq)):
        np.testing.assert_array_equal(on_host(cuattn.attention(q, *given, **options)), expected)
    alone = [cuattn.quantize(x, operand=n, scheme=how) for n, x in (("k", k), ("v", v))]
    assert [x.order for x in alone] == [None, None]
    expected = on_host(cuattn.attention(q, *alone, **options))
    for given in ((alone[0], v), (k, alone[1])):
        np.testing.assert_array_equal(on_host(cuattn.attention(q, *given, **options)), expected)
