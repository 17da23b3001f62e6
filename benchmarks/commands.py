"""The parts of the GPU check that are other programs: pytest and compute-sanitizer."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from cuattn.errors import CuattnError
from cuattn.records.record import Counts, Sanitizer

__all__ = ["run", "sanitizer", "tests"]

ROOT = Path(__file__).resolve().parent.parent

# About the record itself, which is being written, and what the documents take from it.
NOT_HERE = (
    "tests/records/test_record.py::test_committed_records_are_there_and_of_this_code",
    "tests/docs/test_figures.py::test_documents_have_the_figures_of_the_record",
)


def tests(options: str) -> Counts:
    """Run the project's tests, but for those of the record itself, with these options of pytest.

    Raises
    ------
    CuattnError
        If pytest ends otherwise than after its tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        asked = [f"--junitxml={report}", *(f"--deselect={test}" for test in NOT_HERE)]
        asked += shlex.split(options)
        done = run([sys.executable, "-m", "pytest", *asked])
        # 1: some tests failed. Anything else but 0 is pytest's own trouble.
        if done.returncode not in (0, 1):
            raise CuattnError(f"pytest ended with {done.returncode}")
        total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            for key in total:
                total[key] += int(suite.get(key, "0"))
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    return Counts(passed=passed, failed=failed, skipped=total["skipped"])


def sanitizer() -> Sanitizer | None:
    """Run the grid under compute-sanitizer and return its findings; None if it is not installed.

    Raises
    ------
    CuattnError
        If a tool ends without having counted.
    """
    tool = shutil.which("compute-sanitizer", path=_toolkit_path())
    if tool is None:
        print("compute-sanitizer not found: it comes with the CUDA toolkit", flush=True)
        return None
    return Sanitizer(
        # What the libraries try and handle themselves is not a finding.
        memcheck=_watched([tool, "--report-api-errors", "no"], "memcheck", "ERROR SUMMARY: "),
        racecheck=_watched([tool], "racecheck", "RACECHECK SUMMARY: "),
    )


def _watched(sanitizer: list[str], tool: str, summary: str) -> int:
    """Run the grid under a tool and return the number at the head of its summary line."""
    grid = [sys.executable, "-m", "benchmarks.sanitizer_grid"]
    done = run([*sanitizer, "--tool", tool, *grid], capture=True)
    counts = re.findall(rf"{summary}(\d+)", done.stdout)
    if counts:
        findings = sum(int(count) for count in counts)
        if findings:
            print(done.stdout[-20000:], flush=True)
        if findings or "calls done" in done.stdout:
            return findings
    raise CuattnError(f"{tool} gave no answer:\n{done.stdout[-5000:]}")


def run(command: list[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in the root of the checkout, where its Python finds cuattn."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
        check=False,
    )


def _toolkit_path() -> str:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return os.pathsep.join([os.environ.get("PATH", ""), *folders])
