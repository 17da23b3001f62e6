"""A head_dim of V of its own from arrays to the output, by both families on the simulated GPU."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import cuattn
from cuattn.arrays.device import TARGETS, target
from cuattn.errors import UnsupportedError
from cuattn.plan.kernels import attention_spec, supported
from cuattn.presets import PRESETS
from cuattn.reference import emulate
from cuattn.reference.layout import HEAD_DIMS
from cuattn.specs.attention import Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.rules import Rules
from cuattn.specs.stats import StatsSpec
from cuattn.specs.wgmma import WgmmaSpec

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of

PAIRS = [(192, 128), (64, 128), (128, 64), (128, 120), (24, 8), (40, 256), (256, 40), (256, 248)]
SCHEMES = {
    **{name: PRESETS[name] for name in PRESETS},
    "means": replace(PRESETS["int8-token"], name="means", smooth_k="mean", smooth_v="mean"),
    "turned": replace(PRESETS["int8-fast"], name="turned", rotate="qkv"),
}


@pytest.fixture(params=["80", "90a"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def qkv(rng, dims, dtype="float32", seqlens=(40, 200)):
    shapes = [(2, 4, seqlens[0], dims[0])]
    shapes += [(2, 2, seqlens[1], head_dim) for head_dim in dims]
    return [(rng.standard_normal(shape) + 0.5).astype(dtype) for shape in shapes]


def agree(o, wanted, dtype="float32"):
    """A P that is nearly between two steps may round the other way, as factors are float32."""
    rounding = {"float32": 0.0, "float16": 2.0**-11}[dtype]
    off = np.sqrt(np.mean((o - wanted) ** 2))
    assert off <= (1e-3 + rounding) * np.sqrt(np.mean(wanted**2))


@pytest.mark.covering
@pytest.mark.parametrize("dims", PAIRS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_arrays_are_attended_as_in_the_emulation(gpu, rng, dims, scheme, dtype, is_causal):
    how = SCHEMES[scheme]
    inputs = qkv(rng, dims, dtype)
    if not supported(target(gpu.device.arch), [how]):
        with pytest.raises(UnsupportedError):
            cuattn.attention(*inputs, scheme=how, is_causal=is_causal)
        return
    o, lse = cuattn.attention(*inputs, scheme=how, is_causal=is_causal, return_lse=True)
    wanted, wanted_lse = emulate.attention(*inputs, scheme=how, is_causal=is_causal)
    assert o.shape == wanted.shape == (2, 4, 40, dims[1])
    agree(o, wanted, dtype)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", PAIRS, ids=str)
@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int8-block", "int4"])
def test_quantized_operands_give_the_same(gpu, rng, dims, scheme):
    q, k, v = qkv(rng, dims)
    expected = cuattn.attention(q, k, v, scheme=scheme)
    coded_k, coded_v = cuattn.quantize_kv(k, v, scheme=scheme)
    if PRESETS[scheme].smooth_q == "none":
        np.testing.assert_array_equal(
            cuattn.attention(q, coded_k, coded_v, scheme=scheme), expected
        )
        np.testing.assert_array_equal(cuattn.attention(q, coded_k, v, scheme=scheme), expected)
    np.testing.assert_array_equal(cuattn.attention(q, k, coded_v, scheme=scheme), expected)


def test_outputs_and_layouts(gpu, rng):
    inputs = qkv(rng, (64, 128), "float16")
    o = cuattn.attention(*inputs)
    nhd = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in inputs]
    wide = np.zeros((2, 40, 4, 140), np.float16)
    for first in (0, 3):  # one that kernels cannot write to is written by a copy
        out = wide[..., first : first + 128]
        assert cuattn.attention(*nhd, layout="NHD", out=out) is out
        np.testing.assert_array_equal(out.swapaxes(1, 2), o)


def test_one_launch_quantizes_all_and_statistics_take_two(gpu, rng):
    cuattn.attention(*qkv(rng, (64, 128)), scheme="int8")
    made = [spec for spec in gpu.specs if isinstance(spec, QuantizeSpec)]
    assert [(spec.head_dim, spec.head_dim_v) for spec in made] == [(64, 128)]
    of_stats = [spec.head_dim for spec in gpu.specs if isinstance(spec, StatsSpec)]
    assert of_stats in ([64, 128], [64])


KINDS = [*product(HEAD_DIMS, HEAD_DIMS)]


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_pair_has_kernels(arch, is_causal):
    facts = target(arch)
    for scheme, dims, rules in product(
        supported(facts), KINDS, (Rules(), Rules(windowed=True, softcap=True))
    ):
        kind = scheme, dims[0], Type.fp16, is_causal, facts
        spec = attention_spec(*kind, head_dim_v=dims[1], rules=rules)
        assert (spec.head_dim, spec.head_dim_v) == dims
        assert spec.smem_bytes <= facts.max_smem_per_cta
        if isinstance(spec, WgmmaSpec):
            assert dims[1] % spec.value_slice == 0
        if dims[0] == dims[1]:
            alike = attention_spec(*kind, rules=rules)
            assert replace(alike, **_rows(spec)) == spec


def _rows(spec):
    """Only of unquantized products does it matter whether rows end alike without padding."""
    return {"equal_rows": spec.equal_rows} if hasattr(spec, "equal_rows") else {}


@pytest.mark.parametrize("scheme", PRESETS)
@pytest.mark.parametrize("dtype", [Type.fp16, Type.fp32], ids=lambda x: x.value)
def test_tiles_of_every_pair_are_whole(scheme, dtype):
    for dims in KINDS:
        spec = QuantizeSpec.of(PRESETS[scheme], dtype, dims[0], True, head_dim_v=dims[1])
        assert spec.smem_bytes <= 99 * 1024
        assert spec.num_threads * spec.min_ctas <= 1024
        if not spec.v.coded:
            continue
        assert spec.v_tile % 128 == 0
        # What stores rows of channels takes 16 tokens at a time.
        assert spec.num_threads % (spec.v_tile // 16) == 0
