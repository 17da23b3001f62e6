"""Streams, threads and graphs on a GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.gpu_cases import SCHEMES, _kernels, arrays, delay, every_preset, on_host  # noqa: F401

import cuattn
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.gpu


# ---- streams


@every_preset
def test_work_is_ordered_on_the_current_stream(cupy, rng, scheme):
    q, k, v = arrays(rng)
    expected = on_host(cuattn.attention(q, k, v, scheme=scheme))
    stream = cupy.cuda.Stream(non_blocking=True)
    late = [cupy.zeros_like(x) for x in (q, k, v)]
    cupy.cuda.Device().synchronize()
    delay(cupy, stream)
    with stream:
        for to, x in zip(late, (q, k, v), strict=True):
            to[...] = x
        o = cuattn.attention(*late, scheme=scheme)
        found = on_host(o)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.alone
def test_nothing_waits_for_the_gpu(cupy, rng):
    q, k, v = arrays(rng)
    stream = cupy.cuda.Stream(non_blocking=True)

    def call_everything():
        for scheme in SCHEMES.values():
            cuattn.attention(q, k, v, scheme=scheme, return_lse=True)
            cuattn.attention(q, k, v, scheme=scheme, out=cupy.empty_like(q))
        cuattn.quantize(q, operand="q")

    with stream:
        call_everything()  # loads kernels and fills the stream's part of the memory pool
        stream.synchronize()
        delay(cupy, stream, seconds=0.5)
        call_everything()
        # The stream is still at its first kernel, so no call has waited for the end of its own.
        assert not stream.done
        stream.synchronize()


def test_explicit_stream_waits_for_cupys_current_one(cupy, rng):
    q, k, v = arrays(rng)
    expected = on_host(cuattn.attention(q, k, v))
    producer, consumer = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    late = [cupy.zeros_like(x) for x in (q, k, v)]
    cupy.cuda.Device().synchronize()
    delay(cupy, producer)
    with producer:
        for to, x in zip(late, (q, k, v), strict=True):
            to[...] = x
        results = [
            cuattn.attention(*late, stream=consumer),
            cuattn.attention(*late, stream=consumer.ptr),
        ]
    consumer.synchronize()
    for o in results:
        np.testing.assert_array_equal(on_host(o), expected)


def test_inputs_may_be_freed_while_they_are_in_use(cupy, rng):
    """Of arrays on another stream their library does not know that the GPU still reads them."""
    given = arrays(rng)
    expected = on_host(cuattn.attention(*given))
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    delay(cupy, stream)
    o = cuattn.attention(*given, stream=stream)
    sizes = [x.nbytes for x in given]
    del given
    for nbytes in sizes * 4:
        cupy.full(nbytes, 0x7F, cupy.uint8)
    stream.synchronize()
    np.testing.assert_array_equal(on_host(o), expected)


def test_wrong_stream_is_named(rng):
    q, k, v = arrays(rng)
    with pytest.raises(ArgumentError, match=r"^stream must be"):
        cuattn.attention(q, k, v, stream="the usual one")


# ---- threads


def test_threads_share_prepared_calls(cupy, rng):
    given = {name: [arrays(np.random.default_rng(seed)) for seed in range(4)] for name in SCHEMES}
    expected = {
        (name, i): on_host(cuattn.attention(*x, scheme=SCHEMES[name]))
        for name, some in given.items()
        for i, x in enumerate(some)
    }
    cupy.cuda.Device().synchronize()
    barrier = threading.Barrier(8)

    def work(worker):
        barrier.wait()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            for turn in range(40):
                i = (worker + turn) % 4
                name = list(SCHEMES)[(worker * 3 + turn) % len(SCHEMES)]
                o = cuattn.attention(*given[name][i], scheme=SCHEMES[name])
                stream.synchronize()
                np.testing.assert_array_equal(on_host(o), expected[name, i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# ---- graphs


@every_preset
def test_call_is_captured_and_replayed(cupy, rng, scheme):
    first, second = (arrays(rng) for _ in range(2))
    q, k, v = (x.copy() for x in first)
    out = cupy.empty_like(q)
    expected = [on_host(cuattn.attention(*x, scheme=scheme)) for x in (first, second)]
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        cuattn.attention(q, k, v, scheme=scheme, out=out)
        _, lse = cuattn.attention(q, k, v, scheme=scheme, return_lse=True)
        graph = stream.end_capture()
        for inputs, wanted in zip((first, second, first), (*expected, expected[0]), strict=True):
            for to, x in zip((q, k, v), inputs, strict=True):
                to[...] = x
            out.fill(np.nan)
            lse.fill(np.nan)
            graph.launch(stream)
            # What others do meanwhile with the default pool does not disturb the graph.
            with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
                cuattn.attention(*second, scheme=scheme)
            stream.synchronize()
            np.testing.assert_array_equal(on_host(out), wanted)
            assert np.isfinite(on_host(lse)).all()


def test_call_is_captured_by_pytorch(cupy, torch, rng):
    inputs = [torch.from_dlpack(x) for x in arrays(rng)]
    expected = cuattn.attention(*inputs)
    held = [x.clone() for x in inputs]
    pool = cupy.cuda.MemoryPool()
    graph = torch.cuda.CUDAGraph()
    with cupy.cuda.using_allocator(pool.malloc):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            cuattn.attention(*held)  # so that the pool has what the capture needs
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            o = cuattn.attention(*held)
    o.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(o, expected)
