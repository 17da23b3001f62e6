"""The GPU check without a GPU: which phase fills in what, and what is printed in the end."""

import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from benchmarks import (
    chunks,
    commands,
    features,
    first_results,
    gpu_check,
    kernels,
    language_model,
    measurements,
    phases,
    real_model,
    rings,
    states,
    tables,
)
from benchmarks.schedule import Outcome
from cuattn.bench import auto_table, ceilings
from cuattn.bench.cases import PREFILL
from cuattn.bench.series import end_to_end_tops
from cuattn.common import typed_json
from cuattn.errors import ArgumentError
from cuattn.records import record

CASE = asdict(PREFILL[-2])
TIMING = record.Timing(
    **CASE,
    case="prefill",
    implementation="cuattn",
    scheme="int8",
    family="attention_mma",
    kernel_ms=1.0,
    end_to_end_ms=2.0,
    tops=750.0,
)
CEILINGS = [
    record.Ceiling(what="int8", instruction="wgmma", rate=1500.0, iqr=2.5),
    record.Ceiling(what="read", instruction="ld", rate=4100.0, iqr=20.0),
]
JUDGED = record.LanguageModelRow(
    model="SmolLM2",
    text="usage.md",
    tokens=2048,
    scheme="int8",
    cache=None,
    perplexity=12.5,
    delta_nll=0.001,
    kl=4e-4,
    same_top1=0.99,
    where="gpu",
)
FIRST_CALL = record.FirstCall(call="int8", head_dim=128, kernels=3, cold_s=1.75, warm_s=0.25)
FOUND = record.Record(
    digest=record.digest(),
    gpu="NVIDIA Test",
    versions={"cupy": "14.2.0"},
    timings=[TIMING],
    ceilings=CEILINGS,
    first_calls=[FIRST_CALL],
)


def error(distribution):
    about = {**CASE, "scheme": "int8", "family": "any", "distribution": distribution}
    return record.Accuracy(**about, metrics={"relative_l1": 0.01, "cosine": 1.0})


NOW = record.phase_digests()
ROWS = {
    "prefill": TIMING,
    "comparison": replace(TIMING, case="comparison", state="sustained"),
    "features": replace(TIMING, feature="sinks"),
    "models": replace(TIMING, case="model", model="Llama"),
    "mma_sync": replace(TIMING, case="mma-sync"),
    "auto": replace(TIMING, case="auto"),
    "decode": replace(TIMING, case="decode"),
    "chunk": replace(TIMING, case="chunk", feature="paged-16"),
    "ring": replace(TIMING, case="ring-virtual", ranks=4),
}
ERRORS = {
    "accuracy": error("normal"),
    "cache_accuracy": replace(error("normal"), family="decode"),
    "real_model": error(f"{real_model.PREFIX}layer-0"),
}


class InProcess:
    """Stands in for `Schedule`: phases run here, and those of `fail` fail."""

    fail = ()
    ran = ()

    def __init__(self, folder, options, end):
        assert folder.is_dir()

    def in_turn(self, names):
        for name in names:
            type(self).ran += (name,)
            if name in self.fail:
                yield Outcome(name, 2.0, None, "took longer than 1 s", "all is well\n")
                continue
            parts = phases.PHASES[name].parts
            found = phases.Findings()
            for part in range(parts):
                found = found + phases.PHASES[name].run(phases.Share(part, parts, ""))
            yield Outcome(name, 2.0, found, None, "other, N1 left out: no such shape\n" * 2)

    together = in_turn


@pytest.fixture
def schedule(monkeypatch):
    made = type("Made", (InProcess,), {})
    monkeypatch.setattr(gpu_check, "Schedule", made)
    return made


@pytest.fixture
def measured(monkeypatch, schedule):
    """Stand in for all that needs a GPU; returns what the whole check finds."""
    tests = record.Counts(9, 0, 1)
    monkeypatch.setattr(gpu_check, "current_device", lambda: SimpleNamespace(name=FOUND.gpu))
    monkeypatch.setattr(gpu_check, "versions", lambda packages: FOUND.versions)
    monkeypatch.setattr(kernels, "compile_all", lambda: 0)
    monkeypatch.setattr(commands, "tests", lambda options: tests)
    monkeypatch.setattr(
        commands,
        "sanitizer",
        lambda part: record.Sanitizer(*(0 if n == part % 4 else None for n in range(4))),
    )

    def accuracy(part, parts):
        return iter([ERRORS["accuracy"]] if part == 1 else [])

    monkeypatch.setattr(measurements, "accuracy", accuracy)
    monkeypatch.setattr(measurements, "cache_accuracy", lambda: iter([ERRORS["cache_accuracy"]]))
    monkeypatch.setattr(measurements, "prefill_timings", lambda: iter([ROWS["prefill"]]))
    monkeypatch.setattr(measurements, "mma_timings", lambda: iter([ROWS["mma_sync"]]))
    monkeypatch.setattr(auto_table, "timings", lambda left_out: iter([ROWS["auto"]]))
    monkeypatch.setattr(measurements, "cache_timings", lambda: iter([ROWS["decode"]]))
    monkeypatch.setattr(states, "comparison", lambda left_out: iter([ROWS["comparison"]]))
    monkeypatch.setattr(chunks, "timings", lambda left_out: iter([ROWS["chunk"]]))
    monkeypatch.setattr(rings, "timings", lambda left_out: [ROWS["ring"]])
    monkeypatch.setattr(features, "timings", lambda left_out: iter([ROWS["features"]]))
    monkeypatch.setattr(states, "models", lambda left_out: iter([ROWS["models"]]))
    monkeypatch.setattr(real_model, "missing", list)
    monkeypatch.setattr(real_model, "accuracy", lambda run, family: iter([ERRORS["real_model"]]))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setattr(language_model, "missing", lambda: None)
    monkeypatch.setattr(
        language_model,
        "rows",
        lambda xp, texts: iter([replace(JUDGED, text=text) for text in texts]),
    )
    monkeypatch.setattr(ceilings, "measure", lambda: CEILINGS)
    monkeypatch.setattr(first_results, "first_calls", lambda: iter([FIRST_CALL]))
    return replace(
        FOUND,
        tests=tests,
        sanitizer=record.Sanitizer(0, 0, 0, 0),
        accuracy=[*ERRORS.values()],
        timings=[*ROWS.values()],
        method=states.METHOD,
        language_model=[replace(JUDGED, text=text) for text in language_model.TEXTS],
        phases={name: record.PhaseRun(digest=NOW[name], seconds=2.0) for name in NOW},
    )


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Return what runs the command with these options, and then reads the record."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), *options])
        status = gpu_check.main()
        return status, record.load(tmp_path / "test.json")

    return run


def test_phases_are_those_that_a_record_has_digests_of():
    assert [*phases.PHASES] == [phases.KERNELS, *NOW]


def test_a_check_makes_a_record_without_problems(measured, check, capsys):
    assert check() == (0, measured)
    assert record.problems(measured) == []
    said = capsys.readouterr().out
    *_, summary = said.partition(tables.show(measured) + "\n")
    lines = {name: f"== {name}: 2 s" for name in phases.PHASES}
    lines["tests"] += ", 9 passed, 0 failed, 1 skipped"
    assert summary.splitlines()[1:-1] == [*lines.values()]
    for line in lines.values():
        assert f"other, N1 left out: no such shape\n{line}\n" in said


def test_phases_can_be_run_one_by_one_and_again(measured, check):
    for name in [*NOW, *NOW]:
        _, found = check("--phases", name)
    assert found == measured


def test_only_what_is_outdated_is_run_again(measured, check, schedule, tmp_path, monkeypatch):
    check()
    assert schedule.ran == (*phases.PHASES,)
    schedule.ran = ()
    assert check() == (0, measured)
    assert schedule.ran == ()
    old = replace(measured.phases["decode"], digest="0" * 64)
    file = tmp_path / "test.json"
    record.save(replace(measured, phases=measured.phases | {"decode": old}), file)
    assert check() == (0, measured)
    assert schedule.ran == (phases.KERNELS, "decode")


def test_a_record_from_before_phases_is_begun_anew(measured, check, schedule, tmp_path):
    stale = record.Accuracy(**CASE, scheme="gone", family="any", distribution="x", metrics={})
    old = replace(measured, phases={}, stale="no GPU", failures="any", accuracy=[stale])
    record.save(old, tmp_path / "test.json")
    _, found = check("--phases", "decode")
    assert found == replace(
        FOUND,
        timings=[ROWS["decode"]],
        ceilings=[],
        first_calls=[],
        phases={"decode": measured.phases["decode"]},
    )
    assert check() == (0, measured)


def test_what_fails_is_said_and_takes_nothing_else_with_it(measured, check, schedule, capsys):
    schedule.fail = ("prefill",)
    status, found = check()
    assert status == 1
    assert found.phases["prefill"].failed == "took longer than 1 s"
    assert found.timings == [row for name, row in ROWS.items() if name != "prefill"]
    assert found.outdated(NOW) == ["prefill"]
    said = capsys.readouterr().out
    assert "all is well\n== prefill: 2 s, failed: took longer than 1 s\n" in said
    schedule.fail, schedule.ran = (), ()
    assert check() == (0, measured)
    assert schedule.ran == (phases.KERNELS, "prefill")
    # Nor does it take back what the same code was found to do before.
    schedule.fail = ("prefill",)
    assert check("--phases", "prefill") == (1, measured)


def test_kernels_that_are_not_compiled_in_time_are_no_failure(measured, check, schedule):
    schedule.fail = (phases.KERNELS,)
    assert check() == (0, measured)


def test_logs_stay_beside_the_record(measured, check, tmp_path):
    check()
    logs = {path.stem for path in (tmp_path / "logs").iterdir()}
    assert logs == {*phases.PHASES}


def test_a_sanitizer_that_is_not_installed_takes_nothing_back(measured, check, monkeypatch):
    check()
    monkeypatch.setattr(commands, "sanitizer", lambda part: None)
    status, found = check("--phases", "sanitizer")
    assert status == 0
    assert found.sanitizer == measured.sanitizer
    assert found.phases["sanitizer"].left_out == commands.NO_SANITIZER


def test_findings_and_failures_end_with_another_status(measured, check, monkeypatch):
    monkeypatch.setattr(commands, "tests", lambda options: record.Counts(9, 1, 0))
    assert check("--phases", "tests")[0] == 1
    monkeypatch.setattr(commands, "tests", lambda options: record.Counts(10, 0, 0))
    monkeypatch.setattr(commands, "sanitizer", lambda part: record.Sanitizer(0, 2))
    assert check("--phases", "tests,sanitizer")[0] == 1


def test_phases_that_do_not_exist_are_refused(check, capsys):
    with pytest.raises(SystemExit):
        check("--phases", "tests,second_calls")
    assert "no such phase: second_calls" in capsys.readouterr().err


def test_findings_survive_the_way_between_processes(measured, tmp_path):
    found = phases.Findings(
        tests=measured.tests,
        accuracy=measured.accuracy,
        timings=measured.timings,
        method=measured.method,
    )
    path = tmp_path / "found.json"
    typed_json.write(asdict(found), path)
    assert typed_json.read(path, phases.Findings) == found


def test_a_record_is_shown_with_shares_of_its_own_ceilings():
    shown = tables.show(FOUND)
    lines = {line.split("  ")[0]: line.split() for line in shown.splitlines()}
    assert lines["int8, wgmma"] == ["int8,", "wgmma", "1500", "-", "2.5"]
    assert lines["read, ld"] == ["read,", "ld", "-", "4100", "20.0"]
    assert lines["int8, D 128"][3:] == ["3", "1.75", "0.25"]
    (speed,) = [line for line in shown.splitlines() if line.startswith("cuattn int8")]
    assert "50%" in speed
    without = tables.show(replace(FOUND, ceilings=[]))
    (speed,) = [line for line in without.splitlines() if line.startswith("cuattn int8")]
    assert "%" not in speed


def test_a_committed_record_is_printed_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(sys, "argv", ["tables"])
    tables.main()
    committed = [tables.show(record.load(path)) for path in record.records()]
    assert capsys.readouterr().out == "".join(f"{shown}\n" for shown in committed)
    monkeypatch.setattr(sys, "argv", ["tables", str(tmp_path / "none.json")])
    with pytest.raises(ArgumentError, match=r"none\.json"):
        tables.main()


def test_a_language_models_divergences_are_shown():
    rows = [JUDGED, replace(JUDGED, scheme="exact", cache="int4", kl=None)]
    shown = tables.show(replace(FOUND, language_model=rows))
    lines = [line.split() for line in shown.splitlines()]
    assert ["int8", "4.00e-04"] in lines
    assert ["cache", "int4", "-"] in lines


def test_states_and_models_are_shown():
    shown = tables.show(replace(FOUND, timings=[*ROWS.values()]))
    lines = [line.split() for line in shown.splitlines()]
    assert ["int8,", "sustained", f"750/{end_to_end_tops(TIMING):.0f}"] in lines
    assert ["Llama,", "cold", "2.000"] in lines
