"""Times of options of scores without a GPU: what takes turns, and which rows come of it."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import feature_cases, features, phases
from benchmarks.feature_baselines import FLEX, beside
from benchmarks.feature_cases import CAUSAL, FEATURES, SCHEMES, WHOLE, Feature, documents
from cuattn.arrays.device import target
from cuattn.bench.cases import Case
from cuattn.bench.ours import Run
from cuattn.choice.timing import Median
from cuattn.common.typed_json import write
from cuattn.presets import resolve
from cuattn.records.rows import Timing, shape_of

ALL = [feature for of_case in FEATURES.values() for feature in of_case]
FLEX_ROW = Timing(
    **asdict(WHOLE),
    case="prefill",
    implementation=FLEX.name,
    scheme="fp16",
    family="baseline",
    feature="mask-documents",
    kernel_ms=5.0,
)


@pytest.fixture
def timed(monkeypatch):
    """Stand in for the GPU; return the functions of each shape and what was prepared."""
    seen = {"turns": [], "prepared": [], "flushes": []}

    def prepare(q, k, v, case, scheme, **options):
        seen["prepared"].append((case, scheme, options))

        def call():
            pass

        return Run(call if resolve(scheme).qk == "fp16" else lambda: None, call)

    def time_gpu(functions, *, rounds, warmup, flush, order_seed):
        assert order_seed is not None
        seen["turns"].append([*functions])
        seen["flushes"].append(flush.args)
        return {name: Median(2.0 if name[1][1] == "kernel" else 3.0, 0.1) for name in functions}

    @contextmanager
    def room_for(case, needed, left_out):
        yield needed < 2**36

    def of_feature(q, k, v, feature, scheme):
        return prepare(q, k, v, feature.case, scheme, **feature.options())

    monkeypatch.setattr(features, "prepare", of_feature)
    monkeypatch.setattr(features.ours, "family", lambda scheme, case: "any")
    monkeypatch.setattr(features.ours, "supported_schemes", lambda some, left_out: [*some])
    monkeypatch.setattr(features.baselines, "bound", lambda *args: Run(min, min))
    monkeypatch.setattr(features.Baseline, "unavailable", lambda self: None)
    monkeypatch.setattr(features.Feature, "options", lambda self: {"of": self.name})
    monkeypatch.setattr(features, "_arrays", lambda case: (0, 1, 2))
    monkeypatch.setattr(features, "time_gpu", time_gpu)
    monkeypatch.setattr(features, "room_for", room_for)
    monkeypatch.setattr(features, "flex", lambda left_out: iter([FLEX_ROW]))
    return seen


def nobody(what, why):
    pytest.fail(f"{what} is left out: {why}")


def test_every_option_stands_beside_a_plain_call_of_its_shape(timed):
    rows = list(features.timings(nobody))
    wanted = {
        (feature.name, shape_of(feature.case), name)
        for feature in ALL
        for name in ("cuattn " + x for x in SCHEMES)
    }
    found = {
        (t.feature, shape_of(t), f"{t.implementation} {t.scheme}")
        for t in rows
        if t.implementation == "cuattn"
    }
    assert found == wanted
    assert rows[-1] == FLEX_ROW
    others = [(t.feature, t.implementation) for t in rows if t.family == "baseline"]
    assert others == [
        *((feature.name, x.name) for feature in ALL for x in beside(feature)),
        ("mask-documents", FLEX.name),
    ]
    assert {t.case for t in rows} == {"prefill"}
    assert {phases.of_timing(t) for t in rows} == {"features"}
    # What takes turns is all of a shape; where more power is drawn they rest for longer.
    assert [{of.case for of, _ in turn} for turn in timed["turns"]] == [{x} for x in FEATURES]
    assert timed["flushes"] == [(None, 8), *4 * [(None, 40)]]


def test_kernels_are_timed_without_smoothing_of_k_and_calls_with_the_preset(timed):
    rows = list(features.timings(nobody))
    of_kernels = [x for _, x, _ in timed["prepared"] if not isinstance(x, str)]
    assert {x.name for x in of_kernels} == {"int8", "int8-block"}
    assert {x.smooth_k for x in of_kernels} == {"none"}
    assert all(replace(x, smooth_k=resolve(x.name).smooth_k) == resolve(x.name) for x in of_kernels)
    assert {(t.kernel_ms, t.end_to_end_ms) for t in rows if t.scheme == "int8"} == {(2.0, 3.0)}
    assert {(t.kernel_ms, t.end_to_end_ms) for t in rows[:-1] if t.scheme == "fp16"} == {(3.0, 3.0)}
    for case, _, options in timed["prepared"]:
        assert Feature(options["of"], case).name in {x.name for x in FEATURES[case]}


def test_speeds_are_of_the_pairs_that_are_seen(timed):
    rows = {(t.feature, t.seqlen_kv): t for t in features.timings(nobody) if t.scheme == "int8"}
    for feature in ALL:
        tops = rows[feature.name, feature.case.seqlen_kv].tops
        assert tops == pytest.approx(feature.operations / 2.0 * 1e-9)


@pytest.mark.parametrize("name", ["plain", "window-1023", "mask-documents"])
def test_pairs_are_counted_exactly(name):
    n = 2048
    case = Case.square(1, 2, n, 8, name == "window-1023")
    own, key = np.arange(n)[:, None], np.arange(n)
    of_token = documents(n)
    seen = {
        "plain": np.ones((n, n), bool),
        "window-1023": (key <= own) & (key >= own - 1023),
        "mask-documents": of_token == of_token[:, None],
    }
    assert Feature(name, case).operations == 4 * 2 * 8 * int(seen[name].sum())


def test_documents_are_whole_and_in_order():
    of_token = documents(WHOLE.seqlen_kv)
    assert set(np.diff(of_token)) == {0, 1}
    assert (of_token[0], of_token[-1]) == (0, feature_cases.DOCUMENTS - 1)


def test_what_fails_takes_nothing_else_with_it(timed, monkeypatch):
    good = features.prepare

    def prepare(q, k, v, feature, scheme):
        if (resolve(scheme).name, feature.name) == ("int8", "sinks"):
            raise RuntimeError("no such kernel\nand more")
        return good(q, k, v, feature, scheme)

    told = {}

    monkeypatch.setattr(features, "prepare", prepare)
    monkeypatch.setattr(
        features.Baseline,
        "unavailable",
        lambda self: "not installed" if self.name != "pytorch-flash" else None,
    )
    rows = list(features.timings(told.__setitem__))
    assert told == {
        "pytorch-sdpa-mask": "not installed",
        "pytorch-flex": "not installed",
        f"int8, sinks, {CAUSAL}": "no such kernel",
    }
    assert len([t for t in rows if t.feature == "sinks"]) == len(SCHEMES) - 1
    assert {t.implementation for t in rows} == {"cuattn", "pytorch-flash"}


def test_a_process_that_takes_too_long_or_fails_is_left_out(monkeypatch):
    run = subprocess.run
    ways = {
        "took longer than 0.5 s": "import time; time.sleep(60)",
        "its process ended with 3": "raise SystemExit(3)",
    }
    for reason, code in ways.items():
        told = {}

        def other(command, code=code, **options):
            return run([sys.executable, "-c", code], **options)

        monkeypatch.setattr(features.subprocess, "run", other)
        limit = 0.5 if "longer" in reason else 60
        assert list(features.flex(told.__setitem__, limit)) == []
        assert told == {"pytorch-flex": reason}


def test_rows_of_the_other_process_are_read(monkeypatch):
    def run(command, **options):
        *_, file = command
        with open(file, "w", encoding="utf-8") as out:
            write([asdict(FLEX_ROW)], out)

    monkeypatch.setattr(features.subprocess, "run", run)
    assert list(features.flex(nobody)) == [FLEX_ROW]


def test_the_kernels_are_compiled_beforehand():
    specs = list(feature_cases.kernels(target("90a")))
    rules = {spec.rules for spec in specs if hasattr(spec, "rules")}
    assert rules == {feature.rules for feature in ALL}
    assert "mask_map.cu" in {spec.source for spec in specs}
