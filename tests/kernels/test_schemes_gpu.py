"""Every scheme that a paper has, and compositions of none, by both families of kernels."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.gpu_cases import (
    CORE,
    arrays,
    assert_runs_are_bit_identical,
    assert_same,
    check,
    mma_family,
    on_host,
    quantized,
    run,
    runs_here,
)

import cuattn
from cuattn.arrays.device import current_device, target
from cuattn.plan.kernels import attention_spec
from cuattn.presets import PRESETS
from cuattn.scheme import Scheme
from cuattn.specs.attention import Type

pytestmark = pytest.mark.gpu

INT8, INT4 = PRESETS["int8-token"], PRESETS["int4"]
SORTED = PRESETS["int8"]
COMPOSED = [
    replace(INT4, name="groups of 32", q_scope="group", k_scope="group", qk_group=32),
    replace(INT8, name="groups of 64", q_scope="group", k_scope="group", qk_group=64),
    replace(SORTED, name="sorted, nothing rotated", rotate="none"),
    replace(SORTED, name="sorted, blocks of Q", q_scope="block"),
    replace(SORTED, name="sorted, threads of Q", q_scope="thread", smooth_k="mean"),
    replace(INT8, name="tokens rotated", rotate="qk"),
    replace(INT4, name="nothing rotated int4", rotate="none"),
    replace(PRESETS["int8-fp16"], name="nothing rotated half", rotate="none"),
    replace(INT8, name="rotated", rotate="qkv"),
    replace(INT4, name="rotated int4", rotate="qkv"),
    replace(PRESETS["int8-fast"], name="rotated channels", rotate="qkv"),
    replace(PRESETS["sage2-8"], name="rotated scores", rotate="qk"),
    replace(PRESETS["int8-block"], name="threads", q_scope="thread", k_scope="thread"),
    replace(INT8, name="blocks of K, tokens of V", k_scope="block", q_scope="block"),
    replace(INT8, name="heads", q_scope="tensor", k_scope="tensor", smooth_k="mean"),
    replace(INT8, name="int8, Q smoothed", smooth_q="block"),
    replace(PRESETS["int8-block"], name="V in 4 bits", pv="int4"),
    replace(INT8, name="blocks of V", v_scope="block", smooth_v="sample"),
    replace(PRESETS["twin"], name="two terms of the running maximum", p_range="row", p_terms=2),
    replace(PRESETS["twin"], name="twin, 10", p_split=10, v_scope="block"),
]
OTHERS = [scheme for name, scheme in PRESETS.items() if name not in CORE] + COMPOSED
every_other = pytest.mark.parametrize(
    "scheme", [s for s in OTHERS if runs_here(s)], ids=lambda scheme: scheme.name
)
both_families = pytest.mark.usefixtures("family")

# Head dimensions that all scopes can have, and one that is padded; lengths with tails; heads.
HEAD_DIMS = (64, 128, 192, 256)
LENGTHS = [(129, 127), (300, 300), (65, 257), (200, 700), (300, 37)]


@pytest.fixture(params=["of the GPU", "of mma.sync"])
def family(request):
    """Let either family of kernels serve."""
    if request.param == "of the GPU":
        yield
    else:
        with mma_family():
            yield


@pytest.mark.covering
@every_other
@both_families
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention_matches_emulation(rng, scheme, head_dim):
    first = OTHERS.index(scheme) + HEAD_DIMS.index(head_dim)
    for is_causal in (False, True):
        inputs = arrays(
            rng,
            ("float16", "float32", "bfloat16")[first % 3],
            heads=((4, 2), (3, 1))[first % 2],
            seqlens=LENGTHS[(first + is_causal) % len(LENGTHS)],
            head_dim=head_dim,
        )
        check(run(inputs, scheme, is_causal=is_causal), inputs, scheme, is_causal=is_causal)


@every_other
def test_odd_head_dim(rng, scheme):
    if scheme.k_scope == "group":
        with pytest.raises(cuattn.ArgumentError, match="head_dim"):
            run(arrays(rng, head_dim=72), scheme)
        return
    inputs = arrays(rng, head_dim=72)
    check(run(inputs, scheme), inputs, scheme)


@every_other
@both_families
def test_runs_are_bit_identical(rng, scheme):
    inputs = arrays(rng, batch=2, heads=(8, 4), seqlens=(700, 1500), head_dim=128)
    assert_runs_are_bit_identical(inputs, scheme, times=2, is_causal=True)


@every_other
def test_quantized_operands_give_the_same(rng, scheme):
    q, k, v = arrays(rng, seqlens=(200, 300), head_dim=128)
    tensors = quantized((q, k, v), scheme)
    given = [tensors.get(name, x) for name, x in zip("qkv", (q, k, v), strict=True)]
    wanted = run((q, k, v), scheme)
    if scheme.smooth_q == "none":
        o, lse = run((q, given[1], given[2]), scheme)
        assert_same((o, lse), wanted)
        np.testing.assert_array_equal(on_host(run(given, scheme)[0]), on_host(wanted[0]))
    else:
        # What smoothing took from the scores is then that of the quantized keys.
        o, _ = run(given, scheme)
        truth = cuattn.reference.exact.attention(*map(on_host, (q, k, v)))[0]
        errors = [np.abs(on_host(x) - truth).mean() for x in (o, wanted[0])]
        assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("scheme", ["int4", "int-flash-int4", "int4-fp16"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_products_of_4_bits(rng, scheme, head_dim):
    """Packed codes and products of 4 bits, which this GPU may have to make of others."""
    how = PRESETS[scheme]
    inputs = arrays(rng, heads=(4, 2), seqlens=(200, 300), head_dim=head_dim)
    with mma_family():
        wanted = run(inputs, how)
    with mma_family(native_int4=True):
        facts = target(current_device().arch)
        spec = attention_spec(how, head_dim, Type.fp16, False, facts)
        assert spec.qk is Type.int4
        found = run(inputs, how)
        check(found, inputs, how)
    # Integer scores are the same whatever makes them.
    assert_same(found, wanted)


@pytest.mark.parametrize("scheme", ["int8-fp8", "fp8", "sage2-8"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_fp8_products_of_single_warps(rng, scheme, head_dim):
    how = PRESETS[scheme]
    if not runs_here(how):
        with pytest.raises(cuattn.UnsupportedError, match="FP8"):
            run(arrays(rng), how)
        return
    inputs = arrays(rng, heads=(4, 2), seqlens=(200, 300), head_dim=head_dim)
    with mma_family():
        for is_causal in (False, True):
            check(run(inputs, how, is_causal=is_causal), inputs, how, is_causal=is_causal)


def test_groups_need_whole_groups(rng):
    scheme = Scheme("any", q_scope="group", k_scope="group", qk_group=64)
    with pytest.raises(cuattn.ArgumentError, match="head_dim"):
        run(arrays(rng, head_dim=96), scheme)
