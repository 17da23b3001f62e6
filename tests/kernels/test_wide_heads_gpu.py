"""More than 256 channels of Q and K, or of V, on the GPU."""

import numpy as np
import pytest
from helpers.gpu_cases import (
    SCHEMES,
    assert_runs_are_bit_identical,
    check,
    make,
    on_gpu,
    on_host,
    run,
)

import cuattn
from cuattn.arrays.device import current_device
from cuattn.errors import UnsupportedError

pytestmark = pytest.mark.gpu

NAMES = ("int8", "int8-block", "int8-token", "int8-fast", "int8-fp16", "int4", "fp8", "fp16")
HOW = [name for name in NAMES if name in SCHEMES]
every_scheme = pytest.mark.parametrize("scheme", HOW)

# Of one size, padded or not; of two, one of which is wide; of two wide ones.
PAIRS = [(512, 512), (264, 264), (320, 320), (384, 384), (512, 64), (64, 504), (392, 296)]
LENGTHS = [(300, 300), (129, 257), (1, 300), (65, 128), (200, 77)]


def arrays(rng, dims, dtype="float32", **sizes):
    sizes = {"batch": 2, "heads": (4, 2), "seqlens": (150, 290)} | sizes
    return [on_gpu(x, dtype) for x in make(rng, **sizes, head_dim=dims[0], head_dim_v=dims[1])]


def attended(inputs, scheme, **options):
    """Return the result; where shared memory is small, `fp16` ends at 384 channels."""
    head_dim = inputs[0].shape[3]
    if scheme == "fp16" and head_dim > 384 and current_device().arch in ("86", "89", "120a"):
        with pytest.raises(UnsupportedError, match="shared memory"):
            run(inputs, scheme, **options)
        return None
    return run(inputs, scheme, **options)


@pytest.mark.parametrize("dims", PAIRS, ids=str)
@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_matches_emulation(rng, scheme, dims, is_causal):
    turn = HOW.index(scheme) + PAIRS.index(dims) + is_causal
    dtype = ("float32", "float16", "bfloat16")[turn % 3]
    inputs = arrays(rng, dims, dtype, seqlens=LENGTHS[turn % len(LENGTHS)])
    found = attended(inputs, scheme, is_causal=is_causal)
    if found is not None:
        assert found[0].shape == (*inputs[0].shape[:3], dims[1])
        check(found, inputs, scheme, is_causal=is_causal)


@pytest.mark.parametrize("dims", PAIRS[:2], ids=str)
@pytest.mark.parametrize("scheme", ["int8", "int8-block", "int8-token", "fp16"])
def test_options_of_scores(cupy, rng, scheme, dims):
    inputs = arrays(rng, dims, seqlens=(300, 300))
    of_heads = {
        "alibi_slopes": np.linspace(0.1, 0.7, 4, dtype=np.float32),
        "sinks": np.linspace(-1.0, 2.0, 4, dtype=np.float32),
    }
    for options in (
        {"window_size": (100, 0), "softcap": 20.0},
        {"is_causal": True, "alibi_slopes": of_heads["alibi_slopes"]},
        {"sinks": of_heads["sinks"]},
    ):
        given = {
            name: on_gpu(x, "float32") if name in of_heads else x for name, x in options.items()
        }
        found = attended(inputs, scheme, **given)
        if found is not None:
            check(found, inputs, scheme, **options)


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "fp16"])
def test_strides_and_outputs(cupy, rng, scheme):
    inputs = arrays(rng, (264, 312), "float16")
    found = attended(inputs, scheme, is_causal=True)
    nhd = [cupy.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in inputs]
    wide = cupy.zeros((*nhd[0].shape[:3], 312 + 13), inputs[0].dtype)
    for first in (0, 3):  # one that kernels write to, and one that is written by a copy
        wide[...] = 0
        out = wide[..., first : first + 312]
        again = run(nhd, scheme, is_causal=True, layout="NHD", out=out)
        np.testing.assert_array_equal(on_host(out).swapaxes(1, 2), on_host(found[0]))
        np.testing.assert_array_equal(on_host(again[1]), on_host(found[1]))
        beside = on_host(wide)
        assert not beside[..., :first].any()
        assert not beside[..., first + 312 :].any()


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "int8-token"])
def test_operands_that_are_quantized_beforehand(rng, scheme):
    q, k, v = arrays(rng, (512, 320))
    how = SCHEMES[scheme]
    expected = on_host(cuattn.attention(q, k, v, scheme=how))
    coded_k, coded_v = cuattn.quantize_kv(k, v, scheme=how)
    for operands in ((coded_k, coded_v), (coded_k, v), (k, coded_v)):
        np.testing.assert_array_equal(on_host(cuattn.attention(q, *operands, scheme=how)), expected)


@pytest.mark.parametrize("scheme", ["int8", "fp16"])
def test_sequences_end_to_end_are_as_alone(cupy, rng, scheme):
    lengths = [(70, 70), (0, 0), (200, 200), (1, 1)]
    parts = [
        [x[0].transpose(1, 0, 2) for x in arrays(rng, (512, 512), "float16", batch=1, seqlens=n)]
        for n in lengths
    ]
    q, k, v = (cupy.concatenate([part[i] for part in parts]) for i in range(3))
    starts = np.cumsum([0, *(n for n, _ in lengths)])
    cu = cupy.asarray(starts, cupy.int32)
    o = cuattn.attention(
        q,
        k,
        v,
        scheme=SCHEMES[scheme],
        is_causal=True,
        cu_seqlens_q=cu,
        cu_seqlens_k=cu,
        max_seqlen_q=200,
        max_seqlen_k=200,
    )
    for part, first, last in zip(parts, starts, starts[1:], strict=False):
        if last == first:
            continue
        alone = cuattn.attention(
            *(x.transpose(1, 0, 2)[None] for x in part), scheme=SCHEMES[scheme], is_causal=True
        )
        np.testing.assert_array_equal(on_host(o[first:last]).swapaxes(0, 1), on_host(alone[0]))


@every_scheme
def test_runs_are_bit_identical(rng, scheme):
    inputs = arrays(rng, (512, 512), "float16", heads=(16, 4), seqlens=(400, 600))
    if attended(inputs, scheme, is_causal=True) is not None:
        assert_runs_are_bit_identical(inputs, scheme, times=5, is_causal=True)
