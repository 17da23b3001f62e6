"""The GPU check without a GPU: which phase fills in what, and what is printed in the end."""

import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from benchmarks import commands, first_results, gpu_check, measurements, phases, real_model, tables
from cuattn.bench import ceilings
from cuattn.bench.cases import PREFILL
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


@pytest.fixture
def measured(monkeypatch):
    """Stand in for all that needs a GPU; returns what the whole check finds."""
    tests, sanitizer = record.Counts(9, 0, 1), record.Sanitizer(0, 0)
    of_model = error(f"{real_model.PREFIX}layer-0")
    monkeypatch.setattr(gpu_check, "current_device", lambda: SimpleNamespace(name=FOUND.gpu))
    monkeypatch.setattr(gpu_check, "versions", lambda packages: FOUND.versions)
    monkeypatch.setattr(commands, "tests", lambda options: tests)
    monkeypatch.setattr(commands, "sanitizer", lambda: sanitizer)
    monkeypatch.setattr(measurements, "accuracy", lambda: iter([error("normal")]))
    monkeypatch.setattr(measurements, "timings", lambda: iter([TIMING]))
    monkeypatch.setattr(real_model, "missing", list)
    monkeypatch.setattr(real_model, "accuracy", lambda run, family: iter([of_model]))
    monkeypatch.setattr(ceilings, "measure", lambda rounds: CEILINGS)
    monkeypatch.setattr(first_results, "first_calls", lambda: iter([FIRST_CALL]))
    accuracy = [error("normal"), of_model]
    return replace(FOUND, tests=tests, sanitizer=sanitizer, accuracy=accuracy)


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Return what runs the command with these options, and then reads the record."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), *options])
        status = gpu_check.main()
        return status, record.load(tmp_path / "test.json")

    return run


def test_a_check_makes_a_record_without_problems(measured, check, capsys):
    assert check() == (0, measured)
    assert record.problems(measured) == []
    assert capsys.readouterr().out.endswith(tables.show(measured) + "\n")


def test_phases_can_be_run_one_by_one_and_again(measured, check):
    for name in [*phases.PHASES, *phases.PHASES]:
        _, found = check("--phases", name)
    assert found == measured


def test_a_sanitizer_that_is_not_installed_takes_nothing_back(measured, check, monkeypatch):
    check()
    monkeypatch.setattr(commands, "sanitizer", lambda: None)
    assert check("--phases", "sanitizer") == (0, measured)


def test_findings_and_failures_end_with_another_status(measured, check, monkeypatch):
    monkeypatch.setattr(commands, "tests", lambda options: record.Counts(9, 1, 0))
    assert check("--phases", "tests")[0] == 1
    monkeypatch.setattr(commands, "tests", lambda options: record.Counts(10, 0, 0))
    monkeypatch.setattr(commands, "sanitizer", lambda: record.Sanitizer(0, 2))
    assert check("--phases", "tests,sanitizer")[0] == 1


def test_phases_that_do_not_exist_are_refused(check, capsys):
    with pytest.raises(SystemExit):
        check("--phases", "tests,second_calls")
    assert "no such phase: second_calls" in capsys.readouterr().err


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
