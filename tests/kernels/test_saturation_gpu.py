"""Finite inputs have finite outputs, though codes are rounded beyond the range of a type."""

import numpy as np
import pytest
from helpers.gpu_cases import (
    ROUNDING,
    SCHEMES,
    _kernels,  # noqa: F401
    emulated,
    make,
    mma_family,
    on_gpu,
    on_host,
    relative_l1,
    run,
)
from helpers.kv_contents_cases import GPU, Filled, every_format, format_of

from cuattn.reference import exact
from cuattn.reference.rounding import LARGEST, saturate

pytestmark = pytest.mark.gpu


def at_the_limit(dtype, scheme):
    """Whether V may be the largest number of a type: sums of a few of them are float32."""
    how = SCHEMES[scheme]
    of_sums = (
        how.smooth_v != "none" or how.rotates("v") or how.pv == "fp16" or how.v_scope == "block"
    )
    return dtype == "float16" or not of_sums


CASES = [(d, s) for d in ("float16", "bfloat16") for s in SCHEMES if at_the_limit(d, s)]


def extreme(rng, dtype, **sizes):
    """Return Q, K and V, of which all elements of V are as large as can be."""
    q, k, v = make(rng, **sizes)
    v = np.float32(LARGEST[dtype]) * rng.choice(np.array([-1, 1], np.float32), v.shape)
    return [on_gpu(x, dtype) for x in (q, k, v)]


@pytest.mark.parametrize(("dtype", "scheme"), CASES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention(rng, dtype, scheme, is_causal):
    arrays = extreme(rng, dtype, heads=(4, 2), seqlens=(200, 300), head_dim=64)
    options = {"is_causal": is_causal, "scale": 2.0}
    wanted = saturate(emulated(arrays, scheme, **options)[0], dtype)
    truth, _ = exact.attention(*map(on_host, arrays), **options)
    # Divided, because sums of so large numbers are no float32.
    allowed = relative_l1(wanted / LARGEST[dtype], truth / LARGEST[dtype])
    results = [run(arrays, scheme, **options)]
    if "fp8" not in (SCHEMES[scheme].qk, SCHEMES[scheme].pv):
        with mma_family():
            results.append(run(arrays, scheme, **options))
    for o, _ in results:
        o = on_host(o).astype(np.float64)
        assert np.isfinite(o).all()
        assert np.abs(o).max() == LARGEST[dtype]
        error = relative_l1(o / LARGEST[dtype], truth / LARGEST[dtype])
        assert error <= 1.25 * allowed + ROUNDING[dtype], (error, allowed)


@every_format
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [100, 5000], ids=["whole", "merged"])
def test_caches(rng, options, dtype, tokens):
    if format_of(64, options).has_v_zero and dtype == "bfloat16":
        dtype = "float16"  # the range of V is no float32
    filled = Filled(GPU, batch=1, heads=2, head_dim=64, capacity=tokens, **options)
    shape = (1, 2, tokens, 64)
    largest = np.float32(LARGEST[dtype])
    v = largest * rng.choice(np.array([-1, 1], np.float32), shape)
    filled.cache.append(
        on_gpu(rng.standard_normal(shape).astype(np.float32), dtype), on_gpu(v, dtype)
    )
    q = on_gpu(rng.standard_normal((1, 8, 2, 64)).astype(np.float32), dtype)
    o = on_host(filled.cache.attend(q, scale=2.0))
    assert np.isfinite(o).all()
    assert np.abs(o).max() <= largest
