"""Options of `KVCache.attend` on a simulated GPU: what kernels are told, and what is remembered."""

import numpy as np
import pytest
from helpers.kv_score_cases import SETS, eighths, in_library
from kv_cases import FORMATS, cache_of, tokens

from cuattn.errors import ArgumentError
from cuattn.kv.scores import PLAIN, Extra, Features

pytest.importorskip("cupy")
from simulated_gpu.memory import narrowed

from cuattn.operands.operand import DTYPES as TYPES

BATCH, HEADS, QUERIES = 3, 4, 3


class Simulated:
    """Where arrays of the simulated GPU are; uint16 stands for bfloat16."""

    @staticmethod
    def array(x, dtype):
        return narrowed(x, TYPES[dtype]) if dtype == "bfloat16" else x.astype(dtype)


def caches(rng, capacity=400):
    """Return a cache of the simulated GPU and one in host memory, of the same contents."""
    kv_format = FORMATS["4-group64-zero"]
    both = [cache_of(kv_format, capacity=capacity, device=device) for device in (None, "cpu")]
    k, v = tokens(rng, BATCH, 2, 300, kv_format.head_dim)
    for cache in both:
        cache.append(k, v, counts=[300, 0, 131])
    return both


def query(rng):
    return rng.standard_normal((BATCH, HEADS, QUERIES, 64)).astype(np.float16)


@pytest.mark.parametrize("of", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", SETS)
def test_kernels_are_told_what_the_host_does(gpu, rng, name, of):
    on_gpu, on_host = caches(rng)
    options, q = SETS[name](rng, BATCH, HEADS, QUERIES), query(rng)
    given = in_library(Simulated, options, of)
    results = on_gpu.attend(q, return_lse=True, **given)
    wanted = on_host.attend(q, return_lse=True, **in_library(Simulated, options))
    for x, y in zip(results, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    kinds = {"bool": "boolean", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
    arrays = {
        key: Extra(kinds["bool" if options[key].dtype == bool else of])
        for key in ("sinks", "alibi_slopes", "attn_mask")
        if key in options
    }
    wanted = Features("window_size" in options, "softcap" in options, **arrays)
    assert features(gpu) == wanted


def features(gpu):
    """Return what the kernel that was launched last was made for."""
    return Features(*[getattr(gpu.specs[-1], name) for name in Features._fields])


def test_arrays_reach_kernels_through_their_strides(gpu, rng):
    on_gpu, on_host = caches(rng)
    q = query(rng)
    mask = rng.random((BATCH, QUERIES, 2 * 70)) < 0.6
    views = {
        "attn_mask": np.broadcast_to(mask[:, None, ::-1, ::2], (BATCH, HEADS, QUERIES, 70)),
        "sinks": eighths(rng, 2 * HEADS)[::-2],
        "alibi_slopes": np.broadcast_to(eighths(rng, (BATCH, 1)), (BATCH, HEADS)),
    }
    results = [cache.attend(q, return_lse=True, **views) for cache in (on_gpu, on_host)]
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


def test_what_changes_nothing_takes_the_plain_kernel(gpu, rng):
    on_gpu, _ = caches(rng)
    q = query(rng)
    plain = on_gpu.attend(q)
    for options in (
        {"window_size": (399, 0)},
        {"window_size": (-1, -1), "softcap": 0},
        {"attn_mask": np.ones((QUERIES, 0), bool)},
    ):
        np.testing.assert_array_equal(on_gpu.attend(q, **options), plain)
        assert features(gpu) == PLAIN


def test_calls_of_different_kinds_are_not_taken_for_each_other(gpu, rng):
    on_gpu, on_host = caches(rng)
    q = query(rng)
    sinks = eighths(rng, HEADS)
    calls = (
        {"softcap": 1.0},
        {"softcap": 1},
        {"window_size": (1, 0)},
        {"window_size": [np.int64(1), 0]},
        {"window_size": (1, 0), "sinks": sinks},
        {"sinks": sinks},
        {"sinks": sinks.astype(np.float16)},
        {"alibi_slopes": sinks},
    )
    for _ in range(2):
        for options in calls:
            found, wanted = (cache.attend(q, **options) for cache in (on_gpu, on_host))
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    # Equal, but no numbers.
    for options in ({"softcap": True}, {"window_size": (True, 0)}):
        with pytest.raises(ArgumentError):
            on_gpu.attend(q, **options)


def test_other_contents_of_arrays_need_no_other_plan(gpu, rng):
    on_gpu, on_host = caches(rng)
    q, sinks, mask = query(rng), eighths(rng, HEADS), np.ones((QUERIES, 50), bool)
    found = []
    for _ in range(3):
        sinks += 1
        mask[:, rng.integers(0, 40)] = False
        options = {"sinks": sinks, "attn_mask": mask}
        found.append(on_gpu.attend(q, **options))
        np.testing.assert_allclose(found[-1], on_host.attend(q, **options), rtol=1e-3, atol=1e-3)
    assert len(set(map(id, gpu.specs[-3:]))) == 1
    assert (found[0] != found[2]).any()


def test_arrays_of_options_are_not_written_to(gpu, rng):
    for cache in caches(rng):
        options = SETS["everything"](rng, BATCH, HEADS, QUERIES)
        before = {name: np.array(x) for name, x in options.items()}
        for x in options.values():
            if isinstance(x, np.ndarray):
                x.flags.writeable = False
        cache.attend(query(rng), **options)
        for name, x in options.items():
            np.testing.assert_array_equal(x, before[name])


def test_a_window_that_slides_reads_what_appends_have_brought(gpu, rng):
    on_gpu, on_host = caches(rng)
    for count in (1, 16, 60):
        k, v = tokens(rng, BATCH, 2, count, 64)
        for cache in (on_gpu, on_host):
            cache.append(k, v)
        q = query(rng)
        results = [
            cache.attend(q, window_size=(20, 0), return_lse=True) for cache in (on_gpu, on_host)
        ]
        for x, y in zip(*results, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
