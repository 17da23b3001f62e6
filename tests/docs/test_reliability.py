"""The page on reliability: counts of runs, as the runs write them, and a page without any."""

import json
import re
from pathlib import Path

import pytest

from cuattn.records.record import Record, Sanitizer
from tools import mutants
from tools.tables import reliability
from tools.tables.record_figures import Figures
from tools.tables.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
NOTHING = Figures(Record("0", "NVIDIA Test", {}))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(reliability, "FOLDER", tmp_path)
    return tmp_path


def cells(table):
    return [[x.strip() for x in row.strip("|").split("|")] for row in table.splitlines()[2:]]


@pytest.mark.parametrize("name", ["mutants", "fuzz", "sanitizer"])
def test_without_a_run_the_page_says_so(folder, name):
    assert SECTIONS[name](NOTHING) == "There has been no run of which counts were kept."


def test_mutants_are_counted_by_module_and_together(folder):
    found = {"killed": 6, "timeout": 1, "survived": 2, "no tests": 1}
    counts = {"a.py": found, "b.py": {"killed": 10}}
    about = {"tool": "mutmut 3", "date": "2026-01-31", "modules": counts}
    (folder / "mutants.json").write_text(json.dumps(about), encoding="utf-8")
    begin, table = SECTIONS["mutants"](NOTHING).split("\n\n")
    assert begin == "mutmut 3, 2026-01-31:"
    assert cells(table) == [
        ["`a.py`", "10", "7", "2", "1", "70.0"],
        ["`b.py`", "10", "10", "0", "0", "100.0"],
        ["all", "20", "17", "2", "1", "85.0"],
    ]


def test_mutants_that_were_not_tried_count_apart(folder):
    counts = {"a.py": {"killed": 3, "not tried": 5}, "b.py": {"not tried": 2}}
    about = {"tool": "mutmut 3", "date": "2026-01-31", "modules": counts}
    (folder / "mutants.json").write_text(json.dumps(about), encoding="utf-8")
    begin, table = SECTIONS["mutants"](NOTHING).split("\n\n")
    assert begin == "mutmut 3, 2026-01-31; not tried: 7:"
    assert [row[1:] for row in cells(table)] == [
        ["3", "3", "0", "0", "100.0"],
        ["0", "0", "0", "0", "–"],
        ["3", "3", "0", "0", "100.0"],
    ]


def test_inputs_of_fuzzing_are_counted_by_target_and_place(folder):
    run = {"place": "gpu", "process_minutes": 60.0, "seed": 1, "failures": 0}
    run["counts"] = {"kv_cache": {"append": 3, "refused": 4}}
    (folder / "fuzz_gpu.json").write_text(json.dumps(run), encoding="utf-8")
    table, sentence = SECTIONS["fuzz"](NOTHING).split("\n\n")
    assert cells(table) == [["kv cache", "GPU", "7", "append 3, refused 4"]]
    assert sentence == "GPU: 60 minutes of processes, 0 failures."


def test_findings_are_those_of_the_tools_that_ran():
    record = Record("0", "NVIDIA Test", {}, sanitizer=Sanitizer(0, 2))
    begin, table = SECTIONS["sanitizer"](Figures(record)).split("\n\n")
    assert begin == "NVIDIA Test:"
    assert cells(table) == [["`memcheck`", "0"], ["`racecheck`", "2"]]


def test_what_became_of_mutants_is_read_from_what_mutmut_keeps(tmp_path):
    codes = {"x_1": 1, "x_2": 0, "x_3": 33, "x_4": -24, "x_5": None, "x_6": 255, "x_7": -11}
    (tmp_path / "cuattn").mkdir()
    kept = json.dumps({"exit_code_by_key": codes})
    (tmp_path / "cuattn" / "a.py.meta").write_text(kept, encoding="utf-8")
    found = mutants.endings(tmp_path)
    ends = ["killed", "survived", "no tests", "timeout", "not tried", "not tried", "killed"]
    assert found == {"cuattn/a.py": dict(zip(codes, ends, strict=True))}
    assert list(mutants.not_killed(found["cuattn/a.py"])) == ["x_2", "x_3", "x_5", "x_6"]
    assert mutants.counts(found)["cuattn/a.py"] == {end: ends.count(end) for end in sorted(ends)}
    mutants.forget_not_killed(tmp_path)
    ends = ["killed", *["not tried"] * 2, "timeout", *["not tried"] * 2, "killed"]
    assert list(mutants.endings(tmp_path)["cuattn/a.py"].values()) == ends


def test_modules_that_are_mutated_and_their_tests_exist():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[tool\.mutmut\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)[1]
    paths = re.findall(r'"(\w+(?:/\w+)*(?:\.py)?)(?:::\w+)?"', section)
    assert {"cuattn/operands/problem.py", "tests/plan/test_problem.py"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == ["forkserver"]
