"""Times of the host in one loop: who takes turns, what is waited for, the rows of the record."""

from types import SimpleNamespace

import pytest

from benchmarks import host_calls
from benchmarks.host_calls import CALLS, ROUNDS, WARMUP, Call
from cuattn.choice.timing import Median

pytest.importorskip("cupy")

SDPA, OURS = Call("PyTorch", "fp16"), Call("cuattn", "int8")


@pytest.fixture
def log(monkeypatch):
    """What is called, in order, with what waits for the GPU."""
    found = []
    wait = SimpleNamespace(synchronize=lambda: found.append("wait"))
    monkeypatch.setattr("cupy.cuda.Device", lambda: wait)
    return found


def test_the_gpu_is_waited_for_between_turns_only(log):
    functions = {name: lambda name=name: log.append(name) for name in (SDPA, OURS)}
    found = host_calls.time_calls(functions)
    assert [*found] == [SDPA, OURS]
    turns = [log[i : i + CALLS + 1] for i in range(0, len(log), CALLS + 1)]
    assert len(turns) == 2 * (ROUNDS + WARMUP)
    assert all(turn == [turn[0]] * CALLS + ["wait"] for turn in turns)
    # In every round both, not always in the same order.
    rounds = [(turns[i][0], turns[i + 1][0]) for i in range(0, len(turns), 2)]
    assert set(rounds) == {(SDPA, OURS), (OURS, SDPA)}
    assert ROUNDS * CALLS >= 2000


def test_single_calls_are_timed(log, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(host_calls.time, "perf_counter", lambda: next(clock))
    found = host_calls.time_calls({SDPA: lambda: next(clock), OURS: lambda: None}, 3, 4)
    assert {name: (x.ms, x.iqr_ms) for name, x in found.items()} == {SDPA: (2e3, 0), OURS: (1e3, 0)}


@pytest.fixture
def timed(monkeypatch):
    monkeypatch.setattr(host_calls, "calls", lambda left_out: {SDPA: None, OURS: None})
    times = {SDPA: Median(0.02, 0.001), OURS: Median(0.03, 0.002)}
    monkeypatch.setattr(host_calls, "time_calls", lambda functions: times)


@pytest.mark.usefixtures("timed")
def test_rows_of_the_record_say_whose_calls_they_are():
    rows = [*host_calls.timings(print)]
    found = [(x.case, x.implementation, x.scheme, x.end_to_end_ms) for x in rows]
    assert found == [("host-call", *SDPA, 0.02), ("host-call", *OURS, 0.03)]


@pytest.mark.usefixtures("timed")
def test_the_program_compares_with_pytorch(capsys):
    host_calls.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-3:-1] for line in lines] == [["1.00", "of"], ["1.50", "of"]]
    assert "30.0 us" in lines[1]
