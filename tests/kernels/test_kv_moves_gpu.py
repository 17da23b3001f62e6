"""Sequences of a KV cache that share or lose pages on a GPU: graphs, streams, bits of attention."""

import numpy as np
import pytest
from helpers.gpu_cases import assert_close, on_host
from helpers.kv_contents_cases import GPU, SOME, Filled, snapshot, some_formats

from cuattn import KVCache, UnsupportedError

pytestmark = pytest.mark.gpu

PAGED = {"page_size": 16, "num_pages": 40}


def drawn(cupy, rng, heads, count, batch=2):
    x = rng.standard_normal((batch, heads, count, 64), dtype=np.float32)
    return cupy.asarray(x.astype(np.float16))


@some_formats
@pytest.mark.parametrize("paged", [{}, PAGED], ids=["in one piece", "pages"])
def test_a_fork_answers_as_its_source(cupy, rng, options, paged):
    filled = Filled(GPU, capacity=300, **paged, **options).append(rng, [200, 30])
    cache = filled.cache
    q = drawn(cupy, rng, 8, 3)
    q[1] = q[0]
    before = on_host(cache.attend(q, batch_invariant=True))
    cache.fork(0, 1)
    after = on_host(cache.attend(q, batch_invariant=True))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[0])
    # On a stream of its own, and each with other tokens from here on.
    k, v = drawn(cupy, rng, 2, 20), drawn(cupy, rng, 2, 20)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    cache.append(k, v, stream=stream)
    cache.reorder([1, 0], stream=stream)
    stream.synchronize()
    found = cache.gather("float32")[1]
    assert cupy.abs(found[0, :, 200:] - v[1]).max() < 0.6
    assert cupy.abs(found[1, :, 200:] - v[0]).max() < 0.6
    np.testing.assert_array_equal(on_host(found)[0, :, :184], on_host(found)[1, :, :184])


@some_formats
def test_a_graph_goes_on_where_sequences_were_forked(cupy, rng, options):
    captured, eager = (Filled(GPU, capacity=200, **PAGED, **options).cache for _ in range(2))
    first = drawn(cupy, rng, 2, 40)
    q, k, v = (drawn(cupy, rng, heads, 1) for heads in (8, 2, 2))
    out = cupy.empty_like(q)
    for cache in (captured, eager):
        cache.append(first, first, counts=[40, 5])
        cache.append(k, v)
        cache.attend(q, out=out)
        cache.truncate([40, 5])
    captured.reserve(100)
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        with cupy.cuda.using_allocator(pool.malloc):
            captured.attend(q, out=out)
            stream.begin_capture()
            captured.append(k, v)
            captured.attend(q, out=out)
            graph = stream.end_capture()
        for turn in range(30):
            if turn in (0, 7, 20):
                for cache in (captured, eager):
                    cache.fork(turn % 2, 1 - turn % 2, stream=stream)
            for to in (q, k, v):
                to[...] = drawn(cupy, rng, to.shape[1], 1)
            graph.launch(stream)
            eager.append(k, v)
            wanted = eager.attend(q)
            stream.synchronize()
            assert on_host(out).tobytes() == on_host(wanted).tobytes()
    np.testing.assert_array_equal(captured.lengths, eager.lengths)
    assert snapshot(captured) == snapshot(eager)


def test_an_append_to_shared_pages_is_not_captured(cupy, rng):
    cache = Filled(GPU, capacity=64, **PAGED).append(rng, [20, 5]).cache
    k = drawn(cupy, rng, 2, 1)
    cache.append(k, k)
    cache.fork(0, 1)
    before = snapshot(cache)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with pytest.raises(UnsupportedError, match="cannot be captured"):
            cache.append(k, k)
        stream.end_capture()
    assert snapshot(cache) == before


@pytest.mark.parametrize("name", SOME)
def test_a_window_on_the_gpu_holds_what_one_in_host_memory_does(cupy, rng, name):
    shape, options = (1, 2, 64, 128), SOME[name]
    window = {"page_size": 16, "window": 30, "sink_tokens": 20, "smooth_k": False}
    there, here = (KVCache(*shape, device=d, **window, **options) for d in (None, "cpu"))
    q = drawn(cupy, rng, 4, 2, batch=1)
    for turn in range(40):
        k, v = (drawn(cupy, rng, 2, 1 + turn % 19, batch=1) for _ in range(2))
        there.append(k, v)
        here.append(k.get(), v.get())
        assert snapshot(there) == snapshot(here)
        np.testing.assert_array_equal(there.positions, here.positions)
        wanted = here.attend(q.get()).astype(np.float64)
        assert_close(on_host(there.attend(q)).astype(np.float64), wanted, "float16")
