"""Rows of prefill that a run yields, with kernels and times made up."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cuattn.bench import inputs, prefill
from cuattn.bench.cases import Case
from cuattn.bench.ours import Run
from cuattn.choice.timing import WARMUP, Median

CASE = Case.square(1, 2, 64, 32, True)


@pytest.fixture
def rows(monkeypatch):
    """Return what is yielded by name, and what is told."""

    def call():
        pass

    def quantizing():
        pass

    shown = []

    def show(*at):
        shown.append(at)

    def time_gpu(functions, *, rounds, warmup, flush, progress, order_seed):
        assert (rounds, warmup) == (7, WARMUP)
        assert (flush.args, order_seed) == ((None, prefill.REST), 0)
        progress(3, 7)
        return {name: Median(0.5 if name[1] == "kernel" else 1.0, 0.1) for name in functions}

    def bound(baseline, q, k, v, case, left_out):
        if baseline.name == "fails":
            left_out("fails", "no such shape")
            return None
        return Run(call, call)

    runs = {"int8": Run(call, quantizing), "int4": Run(None, quantizing), "fp16": Run(call, call)}
    monkeypatch.setattr(prefill, "noise", lambda case, seed: None)
    monkeypatch.setattr(prefill, "token_noise", lambda case, tokens, seed: None)
    monkeypatch.setattr(prefill, "time_gpu", time_gpu)
    monkeypatch.setattr(prefill.ours, "family", lambda scheme, case: "attention_mma")
    monkeypatch.setattr(prefill.ours, "prepare", lambda q, k, v, case, scheme: runs[scheme])
    monkeypatch.setattr(prefill.baselines, "bound", bound)
    told = {}
    present = [SimpleNamespace(name=name, scheme="fp16") for name in ("other", "fails")]
    found = prefill.timings(CASE, [*runs], present, told.__setitem__, 7, show)
    by_name = {(row.implementation, row.scheme): row for row in found}
    assert told == {"fails": "no such shape"}
    assert shown == [(3, 7)]
    return by_name


def test_kernels_are_timed_apart_from_quantization(rows):
    row = rows["cuattn", "int8"]
    assert (row.kernel_ms, row.end_to_end_ms) == (0.5, 1.0)
    assert row.tops == pytest.approx(CASE.operations / 0.5e-3 * 1e-12)


def test_one_call_is_both_if_nothing_is_quantized(rows):
    for who in (("cuattn", "fp16"), ("other", "fp16")):
        assert rows[who].kernel_ms == rows[who].end_to_end_ms == 1.0


def test_a_scheme_without_operands_of_its_own_has_no_speed_of_its_kernel(rows):
    row = rows["cuattn", "int4"]
    assert (row.kernel_ms, row.kernel_iqr_ms, row.tops) == (None, None, None)
    assert row.end_to_end_ms == 1.0


def test_rows_are_of_schemes_and_of_baselines_that_work(rows):
    assert [*rows] == [("cuattn", x) for x in ("int8", "int4", "fp16")] + [("other", "fp16")]
    assert {row.family for row in rows.values()} == {"attention_mma", "baseline"}
    assert all(
        (row.case, row.seqlen_q, row.is_causal) == ("prefill", 64, True) for row in rows.values()
    )


def test_rows_say_the_state_of_the_gpu_and_whose_shape_it_is():
    run = Run(lambda: None, lambda: None)
    who = prefill.Who("cuattn", "int8", "attention_mma")
    times = {(who, "end_to_end"): Median(2.0, 0.1)}
    (row,) = prefill.rows(CASE, {who: run}, times, kind="model", state="sustained", model="A")
    assert (row.case, row.state, row.model) == ("model", "sustained", "A")
    # Only the call from float16 was timed.
    assert (row.kernel_ms, row.tops, row.end_to_end_ms) == (None, None, 2.0)


def test_query_heads_share_heads_of_k_and_v(monkeypatch):
    sizes = []

    def drawn(shape, seed):
        return np.zeros(shape, np.float16)

    def prepare(q, k, v, case, scheme):
        sizes.append([x.shape for x in (q, k, v)])
        return Run(None, lambda: None)

    monkeypatch.setitem(sys.modules, "cupy", np)
    monkeypatch.setattr(inputs, "_drawn", drawn)
    monkeypatch.setattr(prefill.ours, "family", lambda scheme, case: "attention_mma")
    monkeypatch.setattr(prefill.ours, "prepare", prepare)
    case = dataclasses.replace(CASE, batch=3, num_q_heads=4)
    prefill.bind(case, ["int8"], [], lambda what, why: None)
    assert sizes == [[(3, 4, 64, 32), (3, 2, 64, 32), (3, 2, 64, 32)]]
