"""Launches of a call in order: what the driver is told, and who owns the memory of arguments."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
from simulated_gpu import GPU, SimulatedLaunches

from cuattn.compile import chain, launch, params
from cuattn.compile.chain import Chain
from cuattn.compile.launch import NULL, Buffers, Launch

cupy = pytest.importorskip("cupy")

HEADER = """
struct ChainParams {
    const i32* x;
    f32 scale;
    i32* nothing;
    i32* part;
    i32 count;
};
"""
WORKSPACE = 0x5000_0000


@pytest.fixture
def launches(monkeypatch):
    monkeypatch.setattr(params, "sources", lambda: {"chain.cuh": HEADER})
    params.record.cache_clear()
    yield SimulatedLaunches(monkeypatch)
    params.record.cache_clear()


@pytest.fixture
def make(launches, monkeypatch):
    """Return a maker of chains of some launches, and the list of what their kernels were given."""
    dtype = params.record("ChainParams", "chain.cuh")
    seen = []

    def kernel(grid, block, struct, smem):
        values = np.frombuffer(ctypes.string_at(struct, dtype.itemsize), dtype)[0]
        seen.append((grid, block, smem, *values.tolist()))

    monkeypatch.setattr(launch, "begin", lambda spec, device: None)
    monkeypatch.setattr(launch, "load", lambda spec, device: launches.kernel(kernel))
    monkeypatch.setattr(cupy.cuda, "alloc", lambda nbytes: SimpleNamespace(ptr=WORKSPACE))
    spec = SimpleNamespace(
        params="ChainParams", params_file="chain.cuh", num_threads=64, smem_bytes=512
    )

    def make(counts, clear=False):
        buffers = Buffers("x", "y")
        buffers.take(10)
        part = buffers.take(20)
        if clear:
            buffers.clear(part, 20)
        given = {"scale": 0.5, "nothing": NULL, "part": part}
        return Chain(
            [
                Launch(spec, GPU, (i + 1, 2), {"x": buffers["xy"[i % 2]], "count": n, **given})
                for i, n in enumerate(counts)
            ],
            buffers,
        )

    return make, seen


def test_all_launches_get_their_structs_in_order(make, launches):
    make, seen = make
    call = make([7, 8, 9])
    assert len(call) == 3
    for x, y in ((16, 32), (16, 32), (48, 32), (48, 64)):
        seen.clear()
        call((x, y), 77)
        expected = [
            ((i + 1, 2, 1), (64, 1, 1), 512, (x, y)[i % 2], 0.5, 0, WORKSPACE + 256, 7 + i)
            for i in range(3)
        ]
        assert seen == expected
    assert launches.streams == [77] * 12


def test_the_same_launches_of_some_addresses(make):
    """In another order, beside ones that are always the same; the rest are null."""
    make, seen = make
    call = make([7, 8])

    def given_to(chain, given):
        seen.clear()
        chain(given, 0)
        return [values[3] for values in seen]

    turned = call.of([None, "y", "x"], {})
    assert given_to(turned, [1, 32, 16]) == [16, 32]
    assert given_to(turned, [2, 32, 48]) == [48, 32]
    assert given_to(call.of(["y"], {"x": 64}), [32]) == [64, 32]
    assert given_to(call.of(["y"], {}), [32]) == [0, 32]
    assert given_to(call, (16, 80)) == [16, 80]
    assert all(values[-2] == WORKSPACE + 256 for values in seen)


def test_no_launches_are_no_work(make, launches):
    call = make[0]([])
    assert not call
    assert launches.streams == []


def test_parts_are_cleared_first(make, monkeypatch, launches):
    cleared = []

    def memset(address, value, nbytes, stream):
        cleared.append((address, value, nbytes, stream, len(launches.streams)))

    monkeypatch.setattr("cupy.cuda.runtime.memsetAsync", memset)
    make[0]([1], clear=True)((16, 32), 77)
    assert cleared == [(WORKSPACE + 256, 0, 20, 77, 0)]


def test_another_workspace_is_written(make, monkeypatch):
    make, seen = make
    call = make([1])
    call((16, 32), 0)
    monkeypatch.setattr(cupy.cuda, "alloc", lambda nbytes: SimpleNamespace(ptr=WORKSPACE + 4096))
    call((16, 32), 0)
    assert [values[-2] for values in seen] == [WORKSPACE + 256, WORKSPACE + 4096 + 256]


def test_threads_do_not_share_arguments(make, monkeypatch):
    """The driver is called without the interpreter's lock, so that others run meanwhile."""
    make, seen = make
    call = make([1])
    together = Barrier(4, timeout=10)
    enqueue = cupy.cuda.driver.launchKernel

    def launch_kernel(*arguments):
        together.wait()
        enqueue(*arguments)

    monkeypatch.setattr("cupy.cuda.driver.launchKernel", launch_kernel)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            list(pool.map(lambda i: call((16 * i, 0), 0), range(4)))
    found = [values[3] for values in seen]
    for first in (0, 4, 8):
        assert sorted(found[first : first + 4]) == [0, 16, 32, 48]
    assert len(call._unused) == 4


class DriverError(RuntimeError):
    def __init__(self, status):
        super().__init__(status)
        self.status = status


@pytest.fixture
def failing(make, monkeypatch):
    """Make chains whose first launch fails once with a status; list the contexts that are made."""
    contexts = []
    enqueue = cupy.cuda.driver.launchKernel
    monkeypatch.setattr("cupy.cuda.driver.CUDADriverError", DriverError)
    monkeypatch.setattr(chain, "make_context", lambda: contexts.append(True))

    def fail(status):
        answers = [status]

        def launch_kernel(*arguments):
            if answers:
                raise DriverError(answers.pop())
            enqueue(*arguments)

        monkeypatch.setattr("cupy.cuda.driver.launchKernel", launch_kernel)
        return make[0]([1, 2])

    return fail, contexts, make[1]


@pytest.mark.parametrize("status", [3, 201])
def test_the_first_use_of_a_thread_makes_its_context(failing, status):
    fail, contexts, seen = failing
    fail(status)((16, 32), 0)
    assert contexts == [True]
    assert [values[-1] for values in seen] == [1, 2]


def test_other_failures_are_raised_and_leave_nothing(failing):
    fail, contexts, seen = failing
    call = fail(1)
    with pytest.raises(DriverError):
        call((16, 32), 0)
    assert (contexts, seen) == ([], [])
    call((48, 32), 0)
    assert [values[3] for values in seen] == [48, 32]
