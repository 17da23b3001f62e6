"""The choice of a scheme: within the bound, the fastest, and by the errors that it shows."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest

import cuattn
from cuattn.choice import calibration, measure
from cuattn.choice.choose import SPEED_ORDER, Candidate, choose_scheme, speed_rank
from cuattn.choice.measure import measure_error
from cuattn.choice.scheme_plan import plan_schemes
from cuattn.errors import ArgumentError, UnsupportedError
from cuattn.plan import kernels as plan
from cuattn.presets import PRESETS
from cuattn.records import record
from cuattn.reference.distributions import make
from cuattn.scheme import Scheme

SIZES = {
    "batch": 1,
    "num_q_heads": 2,
    "num_kv_heads": 1,
    "seqlen_q": 24,
    "seqlen_kv": 150,
    "head_dim": 32,
}
# Of the cheap ones to emulate, from the fastest.
SOME = ["int8-fast", "int8-block", "int8", "fp16", "int-flash"]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    for module in (measure, plan):
        monkeypatch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


@pytest.fixture(scope="module")
def qkv():
    return make("sharp", **SIZES)


@pytest.fixture(scope="module")
def sinks():
    return make("sinks", **SIZES)


def test_table_has_the_errors_of_measure_error(qkv):
    choice = choose_scheme(*qkv, schemes=reversed(SOME), is_causal=True, scale=0.2)
    assert [x.scheme.name for x in choice.table] == SOME
    for x in choice.table:
        found = measure_error(*qkv, scheme=x.scheme, is_causal=True, scale=0.2, by_source=False)
        assert x.cosine == found.metrics["cosine"]
        assert x.relative_l1 == found.metrics["relative_l1"]
        assert x.milliseconds is None
    assert not choice.timed


def test_first_within_the_bounds_is_chosen(qkv):
    errors = {x.scheme.name: x for x in choose_scheme(*qkv, schemes=SOME).table}
    assert choose_scheme(*qkv, schemes=SOME, min_cosine=0.0).scheme == PRESETS["int8-fast"]
    fast, block = errors["int8-fast"], errors["int8-block"]
    assert fast.cosine < block.cosine
    assert choose_scheme(*qkv, schemes=SOME, min_cosine=block.cosine).scheme == block.scheme
    assert choose_scheme(*qkv, schemes=SOME, max_relative_l1=fast.relative_l1).scheme == fast.scheme
    strict = choose_scheme(*qkv, schemes=SOME, max_relative_l1=errors["fp16"].relative_l1)
    assert strict.scheme == PRESETS["fp16"]


def test_all_presets_are_candidates_and_the_default_bound_can_be_met(qkv):
    choice = choose_scheme(*qkv)
    assert [x.scheme.name for x in choice.table] == list(SPEED_ORDER)
    assert choice.scheme == next(x.scheme for x in choice.table if x.cosine >= 0.998)


def test_worst_of_several_calls_counts(qkv, sinks):
    together = choose_scheme(*zip(qkv, sinks, strict=True), schemes=SOME)
    alone = [choose_scheme(*x, schemes=SOME).table for x in (qkv, sinks)]
    for both, first, second in zip(together.table, *alone, strict=True):
        assert both.cosine == min(first.cosine, second.cosine)
        assert both.relative_l1 == max(first.relative_l1, second.relative_l1)


def test_layouts_agree(qkv):
    swapped = [x.swapaxes(1, 2) for x in qkv]
    assert choose_scheme(*swapped, schemes=SOME, layout="NHD") == choose_scheme(*qkv, schemes=SOME)


def timed(monkeypatch, seconds):
    """Let runs take times, by the scheme's name; None is a scheme that the GPU cannot run."""

    def with_time(*arrays, scheme, **options):
        time = seconds.get(scheme.name, 1.0)
        if time is None:
            raise UnsupportedError(f"no kernel of {scheme.name}")
        report = measure_error(*arrays, scheme="fp16", **options)
        return dataclasses.replace(report, scheme=scheme, seconds=time)

    monkeypatch.setattr(calibration, "measure_error", with_time)


def test_times_decide_where_there_are_any(qkv, monkeypatch):
    timed(monkeypatch, {"int8": 1e-3, "fp16": 2e-3, "int8-fast": 3e-3})
    choice = choose_scheme(*([x, x] for x in qkv), schemes=["int8-fast", "fp16", "int8"])
    assert choice.timed
    assert choice.scheme == PRESETS["int8"]
    # Both calls together.
    assert [x.milliseconds for x in choice.table] == pytest.approx([2.0, 4.0, 6.0])


def test_presets_that_these_inputs_have_no_kernel_for_are_left_out(qkv, monkeypatch):
    timed(monkeypatch, {"fp8": None})
    names = {x.scheme.name for x in choose_scheme(*([x, x] for x in qkv)).table}
    assert names == PRESETS.keys() - {"fp8"}
    with pytest.raises(UnsupportedError):
        choose_scheme(*qkv, schemes=["fp8", "fp16"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named_with_its_position(qkv, value):
    q, k, v = (x.copy() for x in qkv)
    k[0, 0, 7, 3] = k[0, 0, 9, 0] = value
    words = rf"k\[0, 0, 7, 3\] must be a finite number, got {value}"
    with pytest.raises(ArgumentError, match=words):
        choose_scheme(q, k, v, schemes=["fp16"], min_cosine=0.0)
    with pytest.raises(ArgumentError, match=r"k\[1\]" + words[1:]):
        choose_scheme([q, q], [qkv[1], k], [v, v], schemes=["fp16"])
    with pytest.raises(ArgumentError, match=f"layer 3: {words}"):
        plan_schemes({"layer 3": (q, k, v)}, schemes=["fp16"])


def test_a_nan_is_within_no_bound(qkv, monkeypatch):
    # As from finite inputs whose products are beyond float16.
    def lost(*given, **options):
        report = measure_error(*given, **options)
        return dataclasses.replace(report, metrics=dict.fromkeys(report.metrics, np.nan))

    monkeypatch.setattr(calibration, "measure_error", lost)
    with pytest.raises(ArgumentError, match="schemes must be such that outputs of one are finite"):
        choose_scheme(*qkv, schemes=["fp16"], min_cosine=0.0)


def test_a_single_scheme_stands_for_itself(qkv):
    for scheme in ("int8", PRESETS["int8"]):
        assert [x.scheme.name for x in choose_scheme(*qkv, schemes=scheme).table] == ["int8"]
        plan = plan_schemes({"a": qkv}, schemes=scheme)
        assert plan["a"] == PRESETS["int8"]


def test_a_masked_array_is_refused(qkv):
    masked = np.ma.masked_less(qkv[2], 0)
    for call in (choose_scheme, measure_error, cuattn.attention):
        with pytest.raises(ArgumentError, match="v must be an array without a mask"):
            call(*qkv[:2], masked)
    with pytest.raises(ArgumentError, match="out must be an array without a mask"):
        cuattn.attention(*qkv, out=np.ma.masked_array(np.zeros_like(qkv[0])))


def test_choice_is_readable(qkv):
    choice = choose_scheme(*qkv, schemes=SOME, max_relative_l1=0.5)
    first, titles, *rows = str(choice).splitlines()
    assert first == (
        "int8-fast is the fastest with a cosine similarity of at least 0.998 and relative L1 "
        "error of at most 50 % (speeds as ranked on an H200)"
    )
    assert titles.split() == ["cosine", "L1", "%", "ms"]
    assert [row.split()[0] for row in rows] == SOME
    assert [row.endswith("chosen") for row in rows] == [True, False, False, False, False]
    table = (Candidate(PRESETS["int8"], 0.9999, 0.01, 1.25),)
    measured = dataclasses.replace(choice, scheme=PRESETS["int8"], table=table, timed=True)
    assert "H200" not in str(measured)
    assert str(measured).splitlines()[-1].split() == [
        "int8",
        "0.999900",
        "1.0000",
        "1.250",
        "chosen",
    ]


def test_progress_rises_to_its_end(qkv):
    calls = []
    choose_scheme(*qkv, schemes=SOME, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_cosine": 1.5}, "min_cosine must be from 0 to 1"),
        ({"min_cosine": float("nan")}, "min_cosine must be from 0 to 1"),
        ({"max_relative_l1": -1.0}, "max_relative_l1 must be at least 0"),
        ({"schemes": []}, "schemes must be at least one"),
        ({"schemes": ["int5"]}, "a preset's name .did you mean 'int8' or 'int4'"),
        ({"schemes": "int5"}, "a preset's name .did you mean 'int8' or 'int4'"),
        ({"schemes": ["quick"]}, "scheme must be a Scheme or one of"),
        ({"schemes": 8}, "schemes must be schemes or names of schemes, got 8"),
        ({"schemes": ["int8"], "min_cosine": 1.0}, r"at most 0\.999\d+, that of int8"),
        ({"schemes": ["int8"], "max_relative_l1": 1e-6}, r"at least 0\.0\d+, that of int8"),
        ({"layout": "DNH"}, "layout must be"),
        ({"v": np.zeros((1, 1, 149, 32), np.float32)}, r"v\.shape must be"),
        ({"v": [np.zeros((1, 1, 150, 32), np.float32)]}, "v must be an array, or a list"),
        ({"q": [], "k": [], "v": []}, r"len\(q\) must be at least 1"),
        ({"q": [1, 2], "k": [1], "v": [1, 2]}, r"len\(k\) must be at least 1, and as many"),
    ],
)
def test_bad_arguments_are_named(qkv, change, message):
    arguments = {**dict(zip("qkv", qkv, strict=True)), "schemes": SOME, **change}
    with pytest.raises(ArgumentError, match=message):
        choose_scheme(**arguments)


def test_every_preset_has_its_place_and_others_come_last():
    assert sorted(SPEED_ORDER) == sorted(PRESETS)
    assert [speed_rank(PRESETS[name]) for name in SPEED_ORDER] == [*range(len(PRESETS))]
    assert speed_rank(Scheme("fp8")) == len(PRESETS)  # only its name is a preset's


def test_order_is_that_of_the_record():
    """Two presets may change places by less than the 10 % that runs and sizes differ by."""
    wanted = {"case": "prefill", "implementation": "cuattn", "seqlen_q": 4096, "head_dim": 128}
    times = {
        timing.scheme: timing.end_to_end_ms
        for path in record.records()
        for timing in record.load(path).timings
        if not timing.is_causal and all(getattr(timing, k) == x for k, x in wanted.items())
    }
    assert times
    in_order = [name for name in SPEED_ORDER if name in times]
    wrong = [pair for pair in combinations(in_order, 2) if times[pair[0]] > 1.1 * times[pair[1]]]
    assert wrong == []
