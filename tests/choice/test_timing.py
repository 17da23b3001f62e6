"""How times are taken: turns, what fills the L2 cache before each, and graphs; time is made up."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from cuattn.choice import timing
from cuattn.choice.timing import CleanL2, Graph, time_gpu

MEMORY = 1 << 24


class Clock:
    """The GPU's clock, moved by what is enqueued."""

    def __init__(self):
        self.now = 0.0

    def takes(self, seconds):
        self.now += seconds

    def stamp(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing, "Stamp", made.stamp)
    return made


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_each_is_timed_behind_a_flush_whose_time_is_not_its_own(clock, turns):
    events = []

    class Flush:
        def __call__(self):
            events.append("flush")
            clock.takes(100.0)

    def function(name, seconds):
        def run():
            events.append(name)
            clock.takes(seconds)

        return run

    functions = {name: function(name, name) for name in range(1, turns + 1)}
    shown = []
    times = time_gpu(
        functions, rounds=4, warmup=2, flush=Flush, progress=lambda *at: shown.append(at)
    )
    assert {name: time.ms for name, time in times.items()} == {x: 1e3 * x for x in functions}
    assert events[::2] == ["flush"] * (6 * turns)
    assert sorted(events[1::2]) == sorted(6 * list(functions))
    assert shown == [(done, 4) for done in (1, 2, 3, 4)]


def test_nothing_takes_no_time():
    assert time_gpu({}) == {}


def test_a_clean_cache_is_one_of_lines_that_were_only_read(monkeypatch):
    read = []

    def reduction(*expressions):
        return lambda x, out, axis: read.append((x, out, axis))

    cuda = SimpleNamespace(runtime=SimpleNamespace(memGetInfo=lambda: (0, 16 * MEMORY)))
    cupy = SimpleNamespace(empty=np.zeros, uint64=np.uint64, ReductionKernel=reduction, cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    flush = CleanL2()
    assert not read
    flush()
    ((junk, sums, axis),) = read
    assert junk.nbytes == MEMORY
    assert sums.shape == (len(junk),)
    assert axis == 1
    assert len(junk) >= 1024  # thread blocks that read


def test_a_graph_is_of_so_many_calls_behind_one_that_loads_them(monkeypatch):
    events = []
    stream = SimpleNamespace(
        begin_capture=lambda: events.append("begin"),
        end_capture=lambda: SimpleNamespace(launch=lambda on: events.append(on is stream)),
    )
    cuda = SimpleNamespace(
        get_current_stream=lambda: stream,
        MemoryPool=lambda: SimpleNamespace(malloc=None),
        using_allocator=lambda malloc: nullcontext(),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    graph = Graph(lambda: events.append("call"), 3)
    assert events == ["call", "begin", "call", "call", "call"]
    graph.launch()
    assert events[5:] == [True]


def test_a_random_order_is_that_of_its_seed(clock):
    def orders(seed):
        ran = []
        functions = {name: (lambda name=name: ran.append(name)) for name in range(6)}
        time_gpu(functions, rounds=4, warmup=1, flush=lambda: int, order_seed=seed)
        return [ran[i : i + 6] for i in range(0, len(ran), 6)]

    rounds = orders(1)
    assert all(sorted(some) == list(range(6)) for some in rounds)
    assert len({tuple(some) for some in rounds}) == 5
    assert orders(1) == rounds
    assert orders(2) != rounds


def test_calls_in_a_row_are_timed_when_clocks_have_settled(clock):
    calls = {"fast": 0, "slow": 0}
    rested = []

    def function(name, ms):
        def run():
            calls[name] += 1
            # Of a call that begins before 0.1 s have gone by the clock is higher.
            clock.takes(ms * (0.5 if calls[name] * ms < 50 else 1.0) * 1e-3)

        return run

    def neutral():
        return lambda: rested.append(dict(calls))

    functions = {"slow": function("slow", 10.0), "fast": function("fast", 1.0)}
    times = timing.time_sustained(functions, seconds=0.3, settle=0.1, neutral=neutral)
    assert list(times) == ["slow", "fast"]
    assert {name: round(x.ms, 6) for name, x in times.items()} == {"slow": 10.0, "fast": 1.0}
    assert all(x.iqr_ms < 1e-9 for x in times.values())
    assert len(rested) == 2
    # Each takes about the seconds asked for, whatever a call takes.
    assert 20 <= calls["slow"] <= 70
    assert 200 <= calls["fast"] <= 700


def test_a_call_that_is_longer_than_all_the_time_is_made_all_the_same(clock):
    times = timing.time_sustained({"long": lambda: clock.takes(2.0)}, neutral=lambda: int)
    assert times["long"].ms == 2000.0
