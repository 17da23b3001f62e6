"""The kernels of mma.sync, also on GPUs where another family serves calls by itself."""

import os

import pytest
from helpers.gpu_cases import (
    DTYPES,
    MMA_SCHEMES,
    OF_LENGTHS,
    SCHEMES,
    _kernels,  # noqa: F401
    assert_runs_are_bit_identical,
    assert_same,
    check,
    make,
    mma_family,
    on_gpu,
    run,
)

from cuattn.arrays.device import current_device, target
from cuattn.compile.jit import precompile
from cuattn.plan.kernels import attention_spec
from cuattn.plan.listing import attention_specs
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS
from cuattn.specs.attention import AttentionSpec, Type

pytestmark = pytest.mark.gpu

every_scheme = pytest.mark.parametrize("scheme", MMA_SCHEMES)

# (queries, keys), and heads: odd lengths, one key, hidden rows; grouped heads.
LENGTHS = [(129, 127), (300, 300), (65, 257), (37, 129), (300, 37), (1, 300), (127, 1)]
HEADS = [(4, 2), (3, 1), (2, 2)]


@pytest.fixture(scope="module", autouse=True)
def _family():
    with mma_family():
        arch = current_device().arch
        specs = attention_specs([SCHEMES[n] for n in MMA_SCHEMES], HEAD_DIMS, DTYPES, target(arch))
        assert not any(spec.function == "attention_wgmma" for spec in specs)
        if "PYTEST_XDIST_WORKER" not in os.environ:
            precompile(specs, [arch])
        yield


def test_this_family_serves():
    facts = target(current_device().arch)
    spec = attention_spec(PRESETS["int8"], 128, Type.fp16, False, facts)
    assert isinstance(spec, AttentionSpec)


@pytest.mark.covering
@every_scheme
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_matches_emulation(rng, scheme, head_dim, is_causal):
    # Lengths and types take turns.
    first = MMA_SCHEMES.index(scheme) + HEAD_DIMS.index(head_dim)
    for turn, heads in enumerate(HEADS):
        seqlens = LENGTHS[(3 * first + turn) % len(LENGTHS)]
        inputs = make(rng, batch=2, heads=heads, seqlens=seqlens, head_dim=head_dim)
        arrays = [on_gpu(x, DTYPES[(first + turn) % 2 * 2]) for x in inputs]
        check(run(arrays, scheme, is_causal=is_causal), arrays, scheme, is_causal=is_causal)


@pytest.mark.covering(seqlens=OF_LENGTHS)
@every_scheme
@pytest.mark.parametrize("seqlens", LENGTHS, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_length(rng, scheme, seqlens, is_causal):
    inputs = make(rng, heads=(2, 1), seqlens=seqlens, head_dim=104)
    arrays = [on_gpu(x, "float16") for x in inputs]
    check(run(arrays, scheme, is_causal=is_causal), arrays, scheme, is_causal=is_causal)


@every_scheme
def test_bfloat16_is_taken_and_returned(rng, scheme):
    inputs = make(rng, heads=(4, 2), seqlens=(150, 290), head_dim=128)
    arrays = [on_gpu(x, "bfloat16") for x in inputs]
    o, lse = run(arrays, scheme)
    assert o.dtype == arrays[0].dtype
    check((o, lse), arrays, scheme)


@pytest.mark.parametrize("scheme", [n for n in MMA_SCHEMES if SCHEMES[n].pv == "fp16"])
def test_rows_that_repeat_are_read_where_they_are(rng, cupy, scheme):
    arrays = [on_gpu(x, "float16") for x in make(rng, batch=2, heads=(4, 2), seqlens=(70, 140))]
    arrays[2] = cupy.broadcast_to(arrays[2][:1, :1], arrays[2].shape)
    wanted = run([cupy.ascontiguousarray(x) for x in arrays], scheme)
    assert_same(run(arrays, scheme), wanted)


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_runs_are_bit_identical(rng, scheme, is_causal):
    inputs = make(rng, batch=2, heads=(8, 4), seqlens=(700, 1500), head_dim=128)
    arrays = [on_gpu(x, "float16") for x in inputs]
    assert_runs_are_bit_identical(arrays, scheme, times=3, is_causal=is_causal)
