"""Matrix products of the reference run in one thread, and leave the caller's setting as it was."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import cuattn
from cuattn.errors import ArgumentError
from cuattn.kv_format import KVFormat
from cuattn.reference import blas_threads, decode, emulate, exact, kv_cache, metrics
from cuattn.reference.blas_threads import one_blas_thread

BLAS = ThreadpoolController().select(user_api="blas")

pytestmark = pytest.mark.skipif(not BLAS, reason="NumPy's BLAS is one that has no such setting")


def threads():
    return {library["num_threads"] for library in BLAS.info()}


@pytest.fixture(autouse=True)
def three_threads():
    """A caller's own setting, which no call may change for good."""
    before = BLAS.limit(limits=3)
    with BLAS.limit():
        pass  # lets other threads set limits, too
    yield
    assert threads() == {3}
    before.restore_original_limits()
    with BLAS.limit():
        pass


class Watch:
    """A callback of progress that takes down the setting."""

    def __init__(self):
        self.seen = set()

    def __call__(self, done, total):
        self.seen |= threads()


def qkv(rng):
    return [rng.standard_normal((1, 2, 40, 64), np.float32) for _ in range(3)]


def decoded(q, k, v, progress):
    kind = KVFormat(64, 8, 8)
    return decode.decode(
        q, kv_cache.quantize_keys(k, kind), kv_cache.quantize_values(v, kind), progress=progress
    )


@pytest.mark.parametrize(
    "call",
    [exact.attention, emulate.attention, decoded, cuattn.measure_error, cuattn.choose_scheme],
    ids=["exact", "emulate", "decode", "measure_error", "choose_scheme"],
)
def test_calls_run_in_one_thread(rng, call):
    watch = Watch()
    call(*qkv(rng), progress=watch)
    assert 1 in watch.seen


@pytest.mark.parametrize("call", [exact.attention, emulate.attention, decoded])
def test_all_of_a_call_does(rng, call):
    watch = Watch()
    call(*qkv(rng), progress=watch)
    assert watch.seen == {1}


def test_attention_on_arrays_in_host_memory_does(rng, monkeypatch):
    seen = []
    step = emulate.OnlineSoftmax.step

    def watched(*args):
        seen.append(threads())
        return step(*args)

    monkeypatch.setattr(emulate.OnlineSoftmax, "step", watched)
    cuattn.attention(*qkv(rng))
    assert seen
    assert all(x == {1} for x in seen)


def test_metrics_do(rng, monkeypatch):
    seen = []
    monkeypatch.setitem(metrics.METRICS, "watch", lambda x, r: seen.append(threads()) or 0.0)
    metrics.metrics(np.ones(3), np.ones(3))
    assert seen == [{1}]


def test_setting_is_restored_after_an_exception(rng):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emulate.attention(*qkv(rng), progress=stop)
    assert threads() == {3}
    with pytest.raises(ArgumentError):
        exact.attention(*qkv(rng), block=0)
    assert threads() == {3}


def test_nested_calls_restore_once(rng):
    with one_blas_thread():
        exact.attention(*qkv(rng))
        assert threads() == {1}
    assert threads() == {3}


def test_a_limit_of_the_caller_s_own_holds_on(rng):
    with BLAS.limit(limits=2):
        exact.attention(*qkv(rng))
        assert threads() == {2}
    assert threads() == {3}


def test_calls_of_several_threads_restore_when_the_last_is_done():
    first_in, second_in, first_out = Barrier(2), Barrier(2), Barrier(2)
    seen = {}

    def first():
        with one_blas_thread():
            first_in.wait(60)
            second_in.wait(60)
        first_out.wait(60)

    def second():
        first_in.wait(60)
        with one_blas_thread():
            second_in.wait(60)
            first_out.wait(60)
            seen["second, alone"] = threads()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(first), pool.submit(second)]:
            future.result()
    assert seen == {"second, alone": {1}}
    assert threads() == {3}


def test_threads_that_call_first_find_the_libraries_once(monkeypatch):
    def slow():
        time.sleep(0.05)
        return ThreadpoolController()

    monkeypatch.setattr(blas_threads, "ThreadpoolController", slow)
    blas_threads._libraries.cache_clear()
    start = Barrier(4)

    def call(n):
        start.wait(60)
        with one_blas_thread():
            time.sleep(0.1 + 0.05 * n)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert blas_threads._libraries.cache_info().misses == 1
    assert threads() == {3}


def forked(work):
    """Return the exit code of a forked process, 0 if its work is true, or of one that hangs."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_processes_restore_what_other_threads_would_have():
    inside, forked_one = Event(), Event()

    def other():
        with one_blas_thread():
            inside.set()
            forked_one.wait(60)

    def work():
        with one_blas_thread():
            seen = threads()
        return (seen, threads()) == ({1}, {3})

    thread = Thread(target=other)
    thread.start()
    inside.wait(60)
    try:
        assert forked(work) == 0
    finally:
        forked_one.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_no_fork_comes_in_the_middle_of_a_setting():
    stop = Event()

    def others():
        while not stop.is_set():
            with one_blas_thread():
                pass

    def work():
        with one_blas_thread():
            return True

    busy = [Thread(target=others) for _ in range(3)]
    for thread in busy:
        thread.start()
    try:
        assert [forked(work) for _ in range(10)] == [0] * 10
    finally:
        stop.set()
        for thread in busy:
            thread.join()
