"""More than 256 channels, from arrays to the output, on the simulated GPU."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import cuattn
from cuattn.arrays.device import TARGETS, target
from cuattn.errors import UnsupportedError
from cuattn.plan.kernels import attention_spec, has_kernels, supported
from cuattn.plan.listing import quantizer_specs
from cuattn.presets import PRESETS
from cuattn.reference import emulate
from cuattn.reference.layout import HEAD_DIMS, WIDE_HEAD_DIMS, pad_head_dim
from cuattn.specs.attention import AttentionSpec, Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.rules import Rules

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of

# Of one size, padded or not; of two, one of which is wide; of two wide ones.
PAIRS = [(512, 512), (264, 264), (320, 320), (512, 64), (64, 504), (384, 512)]
NAMES = ("int8", "int8-block", "int8-token", "int8-fast", "int8-fp16", "int4", "fp16", "sage-t")

REFUSED = {
    "groups of channels": replace(
        PRESETS["int4"], name="g64", q_scope="group", k_scope="group", qk_group=64
    ),
    "several queries": PRESETS["sage-b"],
    "rotates V": replace(PRESETS["int8-fast"], name="turned", rotate="qkv"),
}


@pytest.fixture(params=["80", "90a"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def qkv(rng, dims, dtype="float32"):
    shapes = [(2, 4, 40, dims[0]), (2, 2, 200, dims[0]), (2, 2, 200, dims[1])]
    return [(rng.standard_normal(shape) + 0.5).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dims", PAIRS, ids=str)
@pytest.mark.parametrize("scheme", NAMES)
def test_arrays_are_attended_as_in_the_emulation(gpu, rng, dims, scheme):
    dtype = ("float32", "float16")[NAMES.index(scheme) % 2]
    inputs = qkv(rng, dims, dtype)
    options = {"scheme": scheme, "is_causal": PAIRS.index(dims) % 2 == 0}
    o, lse = cuattn.attention(*inputs, **options, return_lse=True)
    wanted, wanted_lse = emulate.attention(*inputs, **options)
    assert o.shape == wanted.shape == (2, 4, 40, dims[1])
    off = np.sqrt(np.mean((o - wanted) ** 2) / np.mean(wanted**2))
    assert off <= (1e-3 if dtype == "float32" else 2e-3)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["int8", "int8-block"])
def test_quantized_operands_give_the_same(gpu, rng, scheme):
    q, k, v = qkv(rng, (512, 320))
    expected = cuattn.attention(q, k, v, scheme=scheme)
    coded_k, coded_v = cuattn.quantize_kv(k, v, scheme=scheme)
    for operands in ((coded_k, coded_v), (coded_k, v), (k, coded_v)):
        np.testing.assert_array_equal(cuattn.attention(q, *operands, scheme=scheme), expected)


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_not_there_is_refused_by_name(gpu, rng, how):
    inputs = qkv(rng, (512, 512))
    with pytest.raises(UnsupportedError, match=f"{how}.* up to 256, not 512"):
        cuattn.attention(*inputs, scheme=REFUSED[how])


def test_codes_of_large_sums_are_exact(gpu):
    """127 * 127 * 512 is more than 2^22, up to which kernels convert for nothing."""
    ones = np.ones((1, 1, 8, 512), np.float32)
    o = cuattn.attention(ones, ones, ones, scheme="int8-token")
    np.testing.assert_allclose(o, 1.0, rtol=1e-6)


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("scheme", NAMES)
def test_every_size_has_kernels(arch, scheme):
    facts = target(arch)
    sizes = [*HEAD_DIMS[1::2], *WIDE_HEAD_DIMS]
    for head_dim, head_dim_v in product(sizes, sizes):
        if max(head_dim, head_dim_v) <= 256:
            continue
        kind = PRESETS[scheme], head_dim, Type.fp16, True, facts
        if head_dim == 512 and scheme == "fp16" and facts.max_smem_per_cta < 2**17:
            with pytest.raises(UnsupportedError, match="shared memory"):
                attention_spec(*kind, head_dim_v=head_dim_v, rules=Rules(softcap=True))
            continue
        spec = attention_spec(*kind, head_dim_v=head_dim_v, rules=Rules(softcap=True))
        assert isinstance(spec, AttentionSpec)  # of mma.sync, on Hopper as well
        assert (spec.head_dim, spec.channels_v) == (head_dim, head_dim_v)
        assert spec.head_dim_v <= 256
        # MMA columns are stored by fours, and the last part has some of V.
        assert spec.head_dim_v % 32 == 0
        assert (spec.v_parts - 1) * spec.head_dim_v < head_dim_v - 56
        assert spec.smem_bytes <= facts.max_smem_per_cta


@pytest.mark.parametrize("head_dim", WIDE_HEAD_DIMS)
@pytest.mark.parametrize("scheme", NAMES)
def test_quantizers_fit_every_gpu(head_dim, scheme):
    for dtype in (Type.fp16, Type.fp32):
        for spec in quantizer_specs(PRESETS[scheme], head_dim, dtype):
            assert getattr(spec, "smem_bytes", 0) <= 99 * 1024
            if not isinstance(spec, QuantizeSpec):
                continue
            assert spec.num_threads * spec.min_ctas <= 1024
            # Blocks of keys are read twice, those of single tokens once.
            assert spec.k_read_again == (spec.k_scope.value in ("sorted", "block", "thread"))
            assert not (spec.k_read_again and spec.staged)


@pytest.mark.parametrize("scheme", supported(target("80")), ids=lambda x: x.name)
def test_every_preset_has_kernels_or_says_why_not(scheme):
    kind = scheme, 512, Type.fp16, False, target("80")
    is_there = scheme.q_scope not in ("block", "thread") and not scheme.rotates("v")
    assert has_kernels(scheme, 512, target("80")) == is_there
    if is_there:
        assert attention_spec(*kind).v_parts == 2
        return
    with pytest.raises(UnsupportedError, match=f"scheme {scheme.name} .* up to 256, not 512"):
        attention_spec(*kind)


def test_sizes_are_padded_to_the_next():
    assert [pad_head_dim(x) for x in (256, 257, 320, 328, 392, 512)] == [
        256,
        320,
        320,
        384,
        512,
        512,
    ]
