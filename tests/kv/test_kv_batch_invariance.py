"""Calls of `KVCache.attend` in which a sequence has the same bits alone and in any batch."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.gpu_cases import on_host
from helpers.kv_contents_cases import (
    GPU,
    Filled,
    _kernels,  # noqa: F401
    every_place,
    some_formats,
)
from hypothesis import given
from hypothesis import strategies as st
from kv_cases import HEADS, cache_of, tokens
from simulated_gpu import SimulatedGPU

from cuattn.errors import ArgumentError
from cuattn.reference.partition import LEAST_PART, most_parts, own_parts

LENGTHS = [3000, 1, 1700, 0, 128, 2049]


@given(length=st.integers(0, 200_000), most=st.integers(1, 200))
def test_parts_hold_every_block_once(length, most):
    parts = own_parts(length, most)
    blocks = -(-length // 128)
    assert [block for part in parts for block in part] == list(range(blocks))
    assert len(parts) <= most
    assert all(len(a) == len(b) >= LEAST_PART for a, b in pairwise(parts[:-1]))


@given(
    length=st.integers(1, 200_000),
    spare=st.integers(0, 200_000),
    workers=st.integers(1, 400),
    heads=st.integers(1, 64),
)
def test_parts_do_not_depend_on_what_there_is_room_for(length, spare, workers, heads):
    room = (-(-(length + more) // 128) for more in (0, spare))
    few, many = (own_parts(length, most_parts(workers, heads, blocks)) for blocks in room)
    assert few == many


def each(filled, q):
    found = filled.cache.attend(q, return_lse=True, batch_invariant=True)
    return [filled.place.host(x) for x in found]


@every_place
@some_formats
@pytest.mark.parametrize("queries", [1, 3])
def test_alone_as_in_a_batch(rng, place, options, queries):
    lengths = LENGTHS if place is GPU else [300, 1, 0, 129]
    batch = len(lengths)
    filled = Filled(place, batch=batch, heads=HEADS, capacity=4096, **options)
    k, _ = filled.draw(rng, HEADS, max(lengths), "float16")
    v, _ = filled.draw(rng, HEADS, max(lengths), "float16")
    q, _ = filled.draw(rng, 4 * HEADS, queries, "float16")
    filled.cache.append(k, v, counts=lengths)
    together = each(filled, q)
    for b, length in enumerate(lengths):
        alone = Filled(place, batch=1, heads=HEADS, capacity=length + 128, **options)
        alone.cache.append(k[b : b + 1], v[b : b + 1], counts=[length])
        for x, y in zip(each(alone, q[b : b + 1]), together, strict=True):
            np.testing.assert_array_equal(x[0], y[b])


@pytest.mark.gpu
@some_formats
def test_the_result_is_that_of_other_calls(rng, options):
    filled = Filled(GPU, batch=3, heads=HEADS, capacity=9000, **options)
    filled.append(rng, [9000, 700, 2048])
    filled.attend(rng, 8, 1, batch_invariant=True)
    filled.attend(rng, 8, 5, batch_invariant=True)


@pytest.mark.gpu
def test_a_graph_has_the_same_bits(cupy, rng):
    filled = Filled(GPU, batch=2, heads=HEADS, capacity=5000, bits=4)
    filled.append(rng, [4000, 100])
    q, _ = filled.draw(rng, 8, 1, "float16")
    out = cupy.empty_like(q)
    wanted = on_host(filled.cache.attend(q, batch_invariant=True))
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        with cupy.cuda.using_allocator(pool.malloc):
            filled.cache.attend(q, out=out, batch_invariant=True)  # fills the pool
            stream.begin_capture()
            filled.cache.attend(q, out=out, batch_invariant=True)
            graph = stream.end_capture()
        out[...] = 0
        for _ in range(3):
            graph.launch()
    stream.synchronize()
    np.testing.assert_array_equal(on_host(out), wanted)


def test_launches(monkeypatch, rng):
    gpu = SimulatedGPU(monkeypatch)
    cache = cache_of(batch=2, capacity=20_000, device=None)
    cache.append(*tokens(rng, 2, HEADS, 300, 64))
    q = rng.standard_normal((2, 4, 1, 64)).astype(np.float16)
    np.testing.assert_array_equal(cache.attend(q, batch_invariant=True), cache.attend(q))
    assert gpu.launched.count("decode") == 2


def test_a_wrong_value_is_refused(rng):
    cache = cache_of()
    with pytest.raises(ArgumentError, match="batch_invariant"):
        cache.attend(np.zeros((3, 2, 1, 64), np.float16), batch_invariant=1)
