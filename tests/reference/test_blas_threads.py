"""Matrix products of the reference run in one thread, and leave the caller's setting as it was."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import cuattn
from cuattn.errors import ArgumentError
from cuattn.kv_format import KVFormat
from cuattn.reference import decode, emulate, exact, kv_cache, metrics
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
