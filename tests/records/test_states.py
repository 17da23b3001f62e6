"""Times cold and sustained: what is timed how, and which rows come of it."""

from contextlib import contextmanager

import pytest

from benchmarks import states
from cuattn.bench import prefill
from cuattn.bench.cases import COMPARED, COMPARISON
from cuattn.bench.models import MODELS
from cuattn.bench.ours import Run
from cuattn.choice.timing import Median


class Baseline:
    def __init__(self, name, scheme):
        self.name, self.scheme = name, scheme


PRESENT = [Baseline("pytorch-cudnn", "fp16"), Baseline("cudnn-fp8", "fp8")]


@pytest.fixture
def timed(monkeypatch):
    """Stand in for the GPU; return the functions that each way of timing was given."""
    given = {"cold": [], "sustained": []}
    ways = []

    def kernel():
        pass

    def call():
        pass

    def bind(case, schemes, present, left_out):
        return {
            **{
                prefill.Who("cuattn", x, "any"): Run(call if x == "fp16" else kernel, call)
                for x in schemes
            },
            **{prefill.Who(x.name, x.scheme, "baseline"): Run(kernel, call) for x in present},
        }

    def time_gpu(functions, *, rounds, warmup, flush, order_seed):
        given["cold"].append([*functions])
        ways.append((rounds, warmup, flush.args, order_seed))
        return {name: Median(2.0 if name[1] == "kernel" else 3.0, 0.1) for name in functions}

    def time_sustained(functions, *, seconds, settle, neutral, order_seed):
        given["sustained"].append([*functions])
        ways.append((seconds, settle, neutral.args, order_seed))
        return {name: Median(1.0 if name[1] == "kernel" else 1.5, 0.1) for name in functions}

    @contextmanager
    def room_for(case, needed, left_out):
        yield needed < 2**40

    monkeypatch.setattr(states.prefill, "bind", bind)
    monkeypatch.setattr(states, "time_gpu", time_gpu)
    monkeypatch.setattr(states, "time_sustained", time_sustained)
    monkeypatch.setattr(states, "room_for", room_for)
    monkeypatch.setattr(states.ours, "supported_schemes", lambda schemes, left_out: [*schemes])
    monkeypatch.setattr(states.baselines, "present", lambda left_out: PRESENT)
    given["ways"] = ways
    return given


def nobody(what, why):
    pytest.fail(f"{what} is left out: {why}")


def test_a_comparison_has_everyone_in_both_states(timed):
    rows = list(states.comparison(nobody))
    who = [*(("cuattn", x) for x in COMPARED), *((x.name, x.scheme) for x in PRESENT)]
    assert len(rows) == 2 * len(who) * len(COMPARISON)
    cold = [row for row in rows if row.state == "cold"]
    assert [(row.implementation, row.scheme) for row in cold] == len(COMPARISON) * who
    assert {(row.case, row.model) for row in rows} == {("comparison", None)}
    assert {row.state: row.kernel_ms for row in rows if row.scheme == "int8"} == {
        "cold": 2.0,
        "sustained": 1.0,
    }
    # Both states are of the same calls, in the way that the record says.
    assert timed["cold"] == timed["sustained"]
    method = states.METHOD
    neutral = (method.flush_bytes, method.neutral_calls)
    assert set(timed["ways"]) == {
        (method.rounds, method.warmup, neutral, method.order_seed),
        (method.sustained_s, method.settle_s, neutral, method.order_seed),
    }


def test_models_have_calls_from_float16_beside_baselines_in_float16(timed):
    rows = list(states.models(nobody))
    assert {row.model for row in rows} == {model.name for model in MODELS}
    assert {row.implementation for row in rows} == {"cuattn", "pytorch-cudnn"}
    assert {call for calls in timed["cold"] for _, call in calls} == {"end_to_end"}
    assert {(row.case, row.state, row.end_to_end_ms) for row in rows} == {
        ("model", "cold", 3.0),
    }
    assert timed["sustained"] == []
    # Where the kernel is all there is it has a speed, elsewhere it was not timed apart.
    assert {row.scheme for row in rows if row.tops} == {"fp16"}


def test_a_shape_that_fails_is_left_out_of_all(timed, monkeypatch):
    good = states.prefill.bind

    def bind(case, *others):
        if case == COMPARISON[1]:
            raise RuntimeError("out of memory\nand more")
        return good(case, *others)

    told = {}
    monkeypatch.setattr(states.prefill, "bind", bind)
    rows = list(states.comparison(told.__setitem__))
    assert told == {str(COMPARISON[1]): "out of memory"}
    assert len({(row.seqlen_kv, row.is_causal, row.batch) for row in rows}) == len(COMPARISON) - 1
