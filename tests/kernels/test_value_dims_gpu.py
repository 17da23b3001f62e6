"""A head_dim of V that is not that of Q and K, on the GPU."""

import os
from itertools import product

import numpy as np
import pytest
from helpers.gpu_cases import (
    MMA_SCHEMES,
    SCHEMES,
    assert_runs_are_bit_identical,
    check,
    make,
    mma_family,
    on_gpu,
    on_host,
    run,
)

import cuattn
from cuattn.arrays.device import current_device, target
from cuattn.compile.jit import precompile
from cuattn.plan.kernels import attention_spec
from cuattn.reference.layout import pad_head_dim
from cuattn.specs.attention import Type
from cuattn.specs.quantize import QuantizeSpec

pytestmark = pytest.mark.gpu

NAMES = ("int8", "int8-token", "int8-block", "int8-fast", "int8-fp16", "int4", "fp8", "fp16")
HOW = [name for name in NAMES if name in SCHEMES]
every_scheme = pytest.mark.parametrize("scheme", HOW)

# DeepSeek's prefill; narrower and wider values; sizes that are padded, to one or to two; extremes.
PAIRS = [(192, 128), (128, 64), (64, 128), (96, 256), (128, 120), (40, 72), (256, 8), (8, 256)]
every_pair = pytest.mark.parametrize("dims", PAIRS, ids=str)

LENGTHS = [(300, 300), (129, 257), (1, 300), (65, 128), (200, 77)]


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """Compile what most tests need on all cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    arch = current_device().arch
    specs = {}
    for name, dims in product(HOW, PAIRS):
        head_dim, head_dim_v = map(pad_head_dim, dims)
        how = SCHEMES[name]
        for is_causal in (False, True):
            kind = how, head_dim, Type.fp32, is_causal, target(arch)
            specs[attention_spec(*kind, head_dim_v=head_dim_v)] = None
        of_values = None if how.rotates("v") else head_dim_v
        spec = QuantizeSpec.of(how, Type.fp32, head_dim, True, head_dim_v=of_values)
        specs[spec] = None
    precompile(list(specs), [arch])


def arrays(rng, dims, dtype="float32", **sizes):
    sizes = {"batch": 2, "heads": (4, 2), "seqlens": (150, 290)} | sizes
    return [on_gpu(x, dtype) for x in make(rng, **sizes, head_dim=dims[0], head_dim_v=dims[1])]


@every_pair
@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_matches_emulation(rng, scheme, dims, is_causal):
    first = HOW.index(scheme) + PAIRS.index(dims)
    for turn in range(2):
        inputs = arrays(rng, dims, seqlens=LENGTHS[(2 * first + turn) % len(LENGTHS)])
        o, lse = run(inputs, scheme, is_causal=is_causal)
        assert o.shape == (*inputs[0].shape[:3], dims[1])
        check((o, lse), inputs, scheme, is_causal=is_causal)


@pytest.mark.parametrize("dims", PAIRS[:5], ids=str)
@pytest.mark.parametrize("scheme", [name for name in HOW if name in MMA_SCHEMES])
def test_the_other_family_matches_emulation(rng, scheme, dims):
    inputs = arrays(rng, dims)
    with mma_family():
        check(run(inputs, scheme, is_causal=True), inputs, scheme, is_causal=True)


@pytest.mark.parametrize("dims", PAIRS[:3], ids=str)
@every_scheme
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_type_and_layout(cupy, rng, scheme, dims, dtype):
    inputs = arrays(rng, dims, dtype)
    o, lse = run(inputs, scheme, is_causal=True)
    assert o.dtype == inputs[0].dtype
    check((o, lse), inputs, scheme, is_causal=True)
    nhd = [cupy.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in inputs]
    wide = cupy.zeros((*nhd[0].shape[:3], dims[1] + 13), inputs[0].dtype)
    for first in (0, 3):  # one that kernels write to, and one that is written by a copy
        wide[...] = 0
        out = wide[..., first : first + dims[1]]
        found, found_lse = run(nhd, scheme, is_causal=True, layout="NHD", out=out)
        assert found is out
        np.testing.assert_array_equal(on_host(out).swapaxes(1, 2), on_host(o))
        np.testing.assert_array_equal(on_host(found_lse), on_host(lse))
        beside = on_host(wide)
        assert not beside[..., :first].any()
        assert not beside[..., first + dims[1] :].any()


@every_pair
@pytest.mark.parametrize("scheme", [x for x in HOW if "fp16" not in (SCHEMES[x].qk, SCHEMES[x].pv)])
def test_operands_that_are_quantized_beforehand(rng, scheme, dims):
    q, k, v = arrays(rng, dims)
    how = SCHEMES[scheme]
    expected = on_host(cuattn.attention(q, k, v, scheme=how))
    coded_k, coded_v = cuattn.quantize_kv(k, v, scheme=how)
    assert (coded_k.shape[3], coded_v.shape[3]) == dims
    found = [cuattn.attention(q, k, coded_v, scheme=how)]
    if how.smooth_q == "none":
        found += [cuattn.attention(q, coded_k, x, scheme=how) for x in (coded_v, v)]
    for o in found:
        np.testing.assert_array_equal(on_host(o), expected)
    # Codes on a GPU are those of the emulation, given the same smoothing.
    alone = cuattn.quantize(v, operand="v", scheme=how)
    of_host = cuattn.quantize(on_host(v), operand="v", scheme=how)
    if how.smooth_v == "none":
        np.testing.assert_array_equal(alone.codes.get(), of_host.codes)


@pytest.mark.parametrize("scheme", ["int8", "fp16"])
def test_options_of_scores(rng, scheme):
    inputs = arrays(rng, (192, 128), seqlens=(300, 300))
    options = {"window_size": (100, 0), "softcap": 20.0}
    check(run(inputs, scheme, **options), inputs, scheme, **options)


@pytest.mark.parametrize("dims", [(192, 128), (64, 128)], ids=str)
@every_scheme
def test_runs_are_bit_identical(rng, scheme, dims):
    inputs = arrays(rng, dims, "float16", heads=(16, 4), seqlens=(700, 900))
    assert_runs_are_bit_identical(inputs, scheme, times=5, is_causal=True)


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "fp16"])
def test_a_long_prefill_matches_the_same_in_parts(cupy, rng, scheme):
    """Values side by side are attended each by themselves: two V of 64 channels are one of 128."""
    q, k, v = arrays(rng, (192, 128), "float16", batch=1, heads=(8, 8), seqlens=(2048, 2048))
    whole = on_host(cuattn.attention(q, k, v, scheme=SCHEMES[scheme], is_causal=True))
    for at in (slice(0, 64), slice(64, 128)):
        half = cupy.ascontiguousarray(v[..., at])
        part = on_host(cuattn.attention(q, k, half, scheme=SCHEMES[scheme], is_causal=True))
        # V's largest elements, and with them scales and the order of keys, are not the same.
        off = np.abs(whole[..., at].astype(np.float64) - part).mean()
        assert off <= 0.1 * np.abs(part).mean()
