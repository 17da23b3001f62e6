"""Phases as processes: side by side or in turn, within their time, and what of them fails."""

import json
import sys
import time

import pytest

from benchmarks import schedule
from benchmarks.phases import Phase
from benchmarks.schedule import Schedule
from cuattn.records.record import Sanitizer

# Stands in for benchmarks.one_phase: the name of a phase says what it does.
SCRIPT = """
import json, os, pathlib, subprocess, sys, time
folder, part, parts, options, *names = sys.argv[1:]
for name in names:
    print(f"== {name}", flush=True)
    print(f"{name} in {os.getpid()} with {options}", flush=True)
    if name.startswith("fails"):
        sys.exit(3)
    if name.startswith("hangs"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pathlib.Path(folder, "child").write_text(str(child.pid))
        time.sleep(60)
    if name == "silent":
        sys.exit(0)
    found = json.loads(pathlib.Path(folder, "empty.json").read_text())
    found["sanitizer"] = {"memcheck": 1 + int(part), "racecheck": None}
    partial = pathlib.Path(folder, f"{name}.{part}.partial")
    partial.write_text(json.dumps(found))
    partial.rename(pathlib.Path(folder, f"{name}.{part}.json"))
"""

EMPTY = {
    **dict.fromkeys(("left_out", "tests", "method")),
    **{name: [] for name in ("accuracy", "timings", "ceilings", "first_calls", "language_model")},
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return what makes a schedule of such phases, by the name of the method to call."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "found"
    folder.mkdir()
    (folder / "empty.json").write_text(json.dumps(EMPTY))

    def call(how, names, *, limit_s=30.0, parts=1, seconds=60.0):
        phases = {name: Phase(None, limit_s, parts) for name in names}
        monkeypatch.setattr(schedule, "PHASES", phases)
        end = time.monotonic() + seconds
        made = Schedule(folder, "-k any", end, (sys.executable, str(script)))
        return {outcome.phase: outcome for outcome in getattr(made, how)(names)}

    return call


def process_of(outcome):
    return outcome.log.partition(" in ")[2].partition(" ")[0]


def test_phases_in_turn_share_a_process_and_have_logs_of_their_own(run):
    found = run("in_turn", ["first", "second"])
    assert [*found] == ["first", "second"]
    assert [x.findings.sanitizer for x in found.values()] == [Sanitizer(1, None)] * 2
    assert process_of(found["first"]) == process_of(found["second"])
    assert "second in" in found["second"].log
    assert "first in" not in found["second"].log
    assert "with -k any" in found["second"].log


@pytest.mark.parametrize("trouble", ["fails", "silent", "hangs"])
def test_what_follows_a_phase_that_fails_has_a_process_of_its_own(run, trouble):
    found = run("in_turn", ["first", trouble, "third"], limit_s=3.0)
    assert [*found] == ["first", trouble, "third"]
    assert [x.findings is None for x in found.values()] == [False, True, False]
    said = {"fails": "status 3", "silent": "without a word", "hangs": "longer than 3 s"}[trouble]
    assert said in found[trouble].failed
    assert process_of(found["third"]) != process_of(found["first"])


def test_parts_share_a_phase_and_their_findings_add_up(run):
    found = run("together", ["one", "two"], parts=3)
    assert {name: x.findings.sanitizer.memcheck for name, x in found.items()} == {
        "one": 1 + 2 + 3,
        "two": 1 + 2 + 3,
    }
    assert found["one"].log.count("one in") == 3


def test_phases_side_by_side_do_not_wait_for_one_that_hangs(run, tmp_path):
    begun = time.monotonic()
    found = run("together", ["hangs", "one", "fails"], limit_s=4.0)
    assert time.monotonic() - begun < 20
    assert [*found][-1] == "hangs"
    assert found["one"].findings is not None
    assert "status 3" in found["fails"].failed
    # All that it started is ended with it.
    child = (tmp_path / "found" / "child").read_text()
    for _ in range(50):
        try:
            with open(f"/proc/{child}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    break
        except FileNotFoundError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("its child goes on")


@pytest.mark.parametrize("how", ["together", "in_turn"])
def test_no_phase_goes_on_beyond_the_end_of_all(run, how):
    begun = time.monotonic()
    found = run(how, ["hangs", "hangs as well"], seconds=2.0)
    assert time.monotonic() - begun < 20
    assert {x.failed for x in found.values()} == {"no time was left"}


def test_nothing_to_run_is_nothing(run):
    assert run("together", []) == {}
    assert run("in_turn", []) == {}
