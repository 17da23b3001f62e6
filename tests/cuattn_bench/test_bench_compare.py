"""Two runs of the bench: noise is not a change, and a change is not noise."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.bench_results import changed, nothing, results

from cuattn.bench import drift
from cuattn.bench import results as bench_results
from cuattn.bench.baselines.registry import BASELINES
from cuattn.bench.compare import compare
from cuattn.bench.drift import Drift, standard_error
from cuattn.bench.tradeoff import Point, front
from cuattn.cli.bench import changes as bench_changes
from cuattn.presets import PRESETS


@pytest.fixture(scope="module")
def run():
    return results()


def noisy(given, sigma, seed):
    """Return results whose times each differ by a normal factor."""
    rng = np.random.default_rng(seed)

    def factor(t):
        return changed(nothing(timings=[t]), drift=math.exp(sigma * rng.normal())).timings[0]

    return replace(given, timings=[factor(t) for t in given.timings])


def test_standard_error_is_that_of_medians():
    rng = np.random.default_rng(0)
    rounds = rng.normal(5.0, 0.1, (4000, 31))
    spread = np.median(rounds, axis=1).std() / 5.0
    low, high = np.percentile(rounds, (25, 75), axis=1)
    assert standard_error(5.0, float((high - low).mean()), 31) == pytest.approx(spread, rel=0.08)
    assert standard_error(5.0, None, 31) == drift.UNKNOWN


def test_drift_is_robust_and_has_a_floor():
    rng = np.random.default_rng(0)
    ratios = 1.02 * np.exp(0.01 * rng.normal(size=400))
    ratios[:40] *= 3
    found = Drift.of(list(ratios))
    assert found.ratio == pytest.approx(1.02, abs=0.003)
    assert found.spread == pytest.approx(0.01, rel=0.2)
    assert Drift.of([1.02] * 9).spread == drift.LEAST
    few = Drift.of([1.5] * 4)
    assert (few.ratio, few.is_known) == (1.0, False)
    assert few.threshold() == pytest.approx(0.03)


def test_same_run_has_no_changes(run):
    found = compare(run, run)
    assert (found.times, found.errors, found.only_old, found.only_new) == ([], [], [], [])
    assert found.within > len(run.timings)
    assert found.same_errors == len(run.accuracy)


def test_common_drift_is_said_and_taken_out(run):
    found = compare(run, changed(run, drift=1.1))
    assert found.times == []
    assert {bound: x.ratio for bound, x in found.drifts.items()} == pytest.approx(
        {"arithmetic": 1.1, "memory": 1.1}
    )
    assert bench_changes.text(found).count("moved by +10.0 %") == 2
    hardly = compare(run, changed(run, drift=0.9999))
    assert bench_changes.text(hardly).count("moved by +0.0 %") == 2


def test_noise_is_no_change_and_changes_beyond_it_are_found(run):
    sigma = 0.006
    old = noisy(run, sigma, 1)
    new = changed(noisy(run, sigma, 2), factors={"int8-fast": 0.9, "kv-int4": 1.2})
    found = compare(old, new)
    schemes = [change.row.scheme for change in found.times]
    wanted = {
        "int8-fast": 2 * sum(t.scheme == "int8-fast" for t in run.timings),
        "kv-int4": sum(t.scheme == "kv-int4" for t in run.timings),
    }
    assert {name: schemes.count(name) for name in wanted} == wanted
    assert len(schemes) - sum(wanted.values()) <= 3  # of some hundred rows of noise
    assert found.faster == pytest.approx(wanted["int8-fast"], abs=2)
    assert found.faster + found.slower == len(found.times)
    sizes = [abs(math.log(change.ratio)) for change in found.times]
    assert sizes == sorted(sizes, reverse=True)
    assert all(abs(math.log(c.ratio)) > c.threshold for c in found.times)


def test_wide_spread_of_a_row_is_noise(run):
    (row,) = [t for t in run.timings if t.scheme == "int8" and t.seqlen_kv == 1024][:1]

    def with_row(**fields):
        others = [t for t in run.timings if t is not row]
        return replace(run, timings=[*others, replace(row, **fields)])

    slower = {"kernel_ms": 1.04 * row.kernel_ms}
    assert len(compare(run, with_row(**slower)).times) == 1
    wide = with_row(**slower, kernel_iqr_ms=0.2 * row.kernel_ms)
    assert compare(run, wide).times == []
    assert len(compare(run, replace(wide, rounds=3000)).times) == 1


def test_errors_change_by_more_than_a_thousandth(run):
    found = compare(run, changed(run, errors={"int8": 1.0005, "fp8": 1.1, "int4": 0.99}))
    assert {c.row.scheme for c in found.errors} == {"fp8", "int4"}
    assert found.errors[0].row.scheme == "fp8"
    assert found.errors[0].ratio == pytest.approx(1.1)
    assert found.same_errors == len(run.accuracy) - len(found.errors)


def test_errors_without_figures_are_told_from_others(run):
    lost = replace(run.accuracy[0], metrics={"relative_l1": None})
    none = replace(run, accuracy=[lost, *run.accuracy[1:]])
    assert compare(none, none).errors == []
    (change,) = compare(run, none).errors
    assert change.new == change.ratio == math.inf
    zero = replace(run.accuracy[0], metrics={"relative_l1": 0.0})
    exact = replace(run, accuracy=[zero, *run.accuracy[1:]])
    assert compare(exact, exact).errors == []
    (change,) = compare(exact, run).errors
    assert change.ratio == math.inf
    assert bench_changes.text(compare(run, exact))


def test_rows_of_one_run_only_are_listed(run):
    fewer = replace(run, timings=run.timings[7:], accuracy=run.accuracy[1:])
    found = compare(run, fewer)
    assert len(found.only_old) == 8
    assert found.only_new == []
    text = bench_changes.text(found)
    assert re.search(r"Only before: (prefill [^;]+; ){3}prefill [^;]+ and 4 more\.", text)
    assert "Only now" not in text
    assert "Only now" in bench_changes.text(compare(fewer, run))


def test_end_to_end_without_a_kernel_is_compared(run):
    found = compare(run, changed(run, factors={"int4": 1.3}))
    assert {(c.row.scheme, c.measure) for c in found.times} == {("int4", "end to end")}


def test_ceilings_are_compared_the_right_way_round(run):
    slower = [replace(c, rate=c.rate / 1.5) for c in run.ceilings[2:3]]
    new = replace(run, ceilings=run.ceilings[:2] + slower + run.ceilings[3:])
    (change,) = compare(run, new).times
    assert (change.row.scheme, change.measure) == ("int8", "ceiling")
    assert change.ratio == pytest.approx(1.5)
    assert change.old > change.new


def test_other_gpus_and_versions_are_said_and_not_refused(run):
    other = replace(run, gpu="NVIDIA B200", versions={"cuattn": "0.1.0", "numpy": "2.0"})
    notes = compare(run, other).notes
    assert "NVIDIA H200 before, NVIDIA B200 now" in notes[0]
    assert any("code are the same" in note for note in notes)
    assert "torch: 2.11.0 before, not there now." in notes
    assert "numpy: not there before, 2.0 now." in notes
    assert compare(run, replace(run, digest="f" * 64)).notes == []


def test_runs_with_nothing_in_common_are_compared(run):
    found = compare(nothing(), run)
    assert (found.times, found.errors, found.within) == ([], [], 0)
    assert len(found.only_new) > 0
    text = bench_changes.text(found)
    assert "Too little unchanged code that is bound by memory (0 rows)" in text
    assert "a change is more than 3.00 %" in text


def test_text_ends_with_one_line_of_counts(run):
    found = compare(run, changed(run, factors={"int8": 1.2}, errors={"int8": 2.0}))
    text = bench_changes.text(found)
    last = text.splitlines()[-1]
    counts = f"0 faster, {len(found.times)} slower, {found.within} within noise"
    assert last == f"{counts}; 4 of {len(run.accuracy)} errors changed."
    assert re.search(r"prefill int8, B4 H32 N1024 D64 causal +\S+ +\S+ +20\.0 +\S+\n", text)
    assert re.search(r"normal int8, B1 H4 N4096 D128 +1\.30 +2\.60 +100\n", text)


def test_long_tables_are_shortened_for_terminals(run):
    every = dict.fromkeys(PRESETS, 1.5)
    found = compare(run, changed(run, factors=every))
    text = bench_changes.text(found)
    hidden = len([c for c in found.times if c.measure == "kernel"]) - bench_changes.SHOWN
    assert hidden > 0
    assert f"times of kernels, ms (and {hidden} that changed less)" in text
    whole = bench_changes.tables(found)[0]
    assert sum(len(group.rows) for group in whole.groups) == len(found.times)


def test_front_has_what_no_other_beats():
    a, b, c = Point("a", 10, 5), Point("b", 8, 2), Point("c", 3, 1)
    worse, same, hardly = Point("w", 7, 3), Point("s", 8, 2), Point("h", 2, 0.99)
    assert front([c, worse, b, same, a, hardly]) == [a, b, c]
    assert front([]) == []


def test_ceilings_of_baselines_can_be_found():
    """A page resolves the scheme of every implementation."""
    assert {baseline.scheme for baseline in BASELINES} <= PRESETS.keys()


def test_results_are_the_same_once_loaded(run, tmp_path):
    bench_results.save(run, tmp_path / "run.json")
    assert bench_results.load(tmp_path / "run.json") == run
