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
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from cuattn.errors import CuattnError
from cuattn.records.record import Counts, Sanitizer

__all__ = ["NO_SANITIZER", "run", "sanitizer", "tests"]

ROOT = Path(__file__).resolve().parent.parent

# Tests that another computer cannot run: of kernels, and of examples for frameworks, which use the
# GPU where there is one. Those marked so are not to share it, so they follow by themselves.
TOGETHER = "(gpu or needs) and not alone"
ALONE = "gpu and alone"
# Cores that are left for the phases beside the tests.
CORES_LEFT, MOST_WORKERS = 2, 24

# Processes that share a GPU and the cores: JAX is not to take most of the memory, nor PyTorch a
# thread for each core.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "OMP_NUM_THREADS": "1"}

# Of pytest: some tests failed; none was selected. Anything else but 0 is its own trouble.
SOME_FAILED, NONE_SELECTED = 1, 5

NO_SANITIZER = "compute-sanitizer not found: it comes with the CUDA toolkit"


def tests(options: str) -> Counts:
    """Run the tests that need a GPU with these options of pytest, in processes side by side.

    Raises
    ------
    CuattnError
        If pytest ends otherwise than after its tests.
    """
    workers = 0
    if find_spec("xdist") is not None:
        workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - CORES_LEFT))
    together = _pytest(TOGETHER, workers, options)
    alone = _pytest(ALONE, min(workers, 1), options)
    return Counts(
        passed=together.passed + alone.passed,
        failed=together.failed + alone.failed,
        skipped=together.skipped + alone.skipped,
    )


def _pytest(marks: str, workers: int, options: str) -> Counts:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # A file that cannot be imported is one error, and no reason to leave out the others.
        # pytest-benchmark, where it is installed, objects to tests that run in parallel.
        asked = [
            "-v",
            "--tb=short",
            "-m",
            marks,
            f"--junitxml={report}",
            "--continue-on-collection-errors",
        ]
        asked += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
        if workers:
            asked += [f"-n{workers}", "--dist=worksteal"]
        done = run([sys.executable, "-m", "pytest", *asked, *shlex.split(options)])
        if done.returncode not in (0, SOME_FAILED, NONE_SELECTED):
            raise CuattnError(f"pytest ended with {done.returncode}")
        total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        root = ElementTree.parse(report).getroot()
        for suite in root.iter("testsuite"):
            for key in total:
                total[key] += int(suite.get(key, "0"))
        # Last of the log, so that a record's count of failures has names.
        for case in root.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                print(f"failed: {case.get('classname')} {case.get('name')}", flush=True)
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    return Counts(passed=passed, failed=failed, skipped=total["skipped"])


# Tools of compute-sanitizer, the processes that share the grid under each, and how each begins the
# line of its count.
_SANITIZERS = {
    "memcheck": (4, "ERROR SUMMARY: "),
    "racecheck": (4, "RACECHECK SUMMARY: "),
    "synccheck": (2, "ERROR SUMMARY: "),
    "initcheck": (2, "ERROR SUMMARY: "),
}
SANITIZER_PARTS = sum(parts for parts, _ in _SANITIZERS.values())


def sanitizer(part: int) -> Sanitizer | None:
    """Run a part of the grid under one of compute-sanitizer's tools.

    Parameters
    ----------
    part : int
        Of `SANITIZER_PARTS`: every tool has some, each with its share of the grid.

    Returns
    -------
    Sanitizer or None
        The tool's findings; None if it is not installed.

    Raises
    ------
    CuattnError
        If the tool ends without having counted.
    """
    path = shutil.which("compute-sanitizer", path=_toolkit_path())
    if path is None:
        return None
    for tool, (parts, summary) in _SANITIZERS.items():
        if part < parts:
            # What the libraries try and handle themselves is not a finding.
            command = [path, "--report-api-errors", "no"] if tool == "memcheck" else [path]
            found = _watched(command, tool, summary, [str(part), str(parts)])
            return replace(Sanitizer(), **{tool: found})
        part -= parts
    raise CuattnError(f"the sanitizer has {SANITIZER_PARTS} parts")


def _watched(sanitizer: list[str], tool: str, summary: str, share: list[str]) -> int:
    """Run a share of the grid under a tool and return the number at the head of its summary."""
    grid = [sys.executable, "-m", "benchmarks.sanitizer_grid", *share]
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
        env={**os.environ, **SHARED, "PYTHONPATH": path},
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
        check=False,
    )


def _toolkit_path() -> str:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return os.pathsep.join([os.environ.get("PATH", ""), *folders])
