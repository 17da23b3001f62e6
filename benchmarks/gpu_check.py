"""Check the kernels on this computer's GPU and write what was found into its record.

Each phase replaces its own part of the record, so a check can be made in several calls. A record of
other code is begun anew. Run from the root of the project: python -m benchmarks.gpu_check
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import cuattn
from benchmarks import ours, real_model, tables
from cuattn import record
from cuattn.device import current_device
from cuattn.errors import CuattnError

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"

PACKAGES = (
    *("numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "pytest", "hypothesis"),
    *("torch", "triton", "jax", "sageattention", "comfy-kitchen"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend"),
)
# What only a person can say about a record.
REASONS = {
    "stale": "why there is no newer one: no GPU could be had",
    "failures": "which tests failed, and why for reasons outside the code",
}
# About the record itself, which is being written, and what the documents take from it.
NOT_HERE = (
    "tests/test_record.py::test_committed_records_are_there_and_of_this_code",
    "tests/test_figures.py::test_documents_have_the_figures_of_the_record",
)


def main() -> int:
    """Run the phases asked for; return 0 if nothing failed."""
    options = _options()
    said = {key: getattr(options, key) for key in REASONS if getattr(options, key) is not None}
    if said:
        for path in record.records():
            record.save(replace(record.load(path), **said), path)
        return 0
    gpu = current_device().name
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{_slug(gpu)}.json"
    found = _begun(path, gpu)
    for phase in options.phases.split(","):
        start = time.monotonic()
        PHASES[phase](found, options)
        record.save(found, path)
        print(f"== {phase}: {time.monotonic() - start:.0f} s", flush=True)
    print(tables.show(found))
    return 1 if (found.tests and found.tests.failed) or _findings(found) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument(
        "--phases", default=",".join(PHASES), help="some of %(default)s, in the order to run"
    )
    parser.add_argument("--pytest", default="", metavar="OPTIONS", help="passed to pytest")
    for key, about in REASONS.items():
        parser.add_argument(
            f"--{key}", metavar="REASON", help=f"only write into the records {about}"
        )
    options = parser.parse_args()
    unknown = set(options.phases.split(",")) - set(PHASES)
    if unknown:
        parser.error(f"no such phase: {', '.join(sorted(unknown))}")
    for key in REASONS:
        if (reason := getattr(options, key)) is not None and not reason.strip():
            parser.error(f"--{key} needs a reason in words")
    return options


def _begun(path: Path, gpu: str) -> record.Record:
    """Return the record that this run adds to: the one at hand if it is of this very code."""
    now = record.digest()
    for known in (path, RECORDS / path.name):
        if known.exists():
            old = record.load(known)
            if old.digest == now:
                return replace(old, stale=None, versions=_versions())
    return record.Record(digest=now, gpu=gpu, versions=_versions())


def _tests(found: record.Record, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        asked = [f"--junitxml={report}", *(f"--deselect={test}" for test in NOT_HERE)]
        asked += shlex.split(options.pytest)
        done = _run([sys.executable, "-m", "pytest", *asked])
        # 1: some tests failed. Anything else but 0 is pytest's own trouble.
        if done.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with {done.returncode}")
        total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            for key in total:
                total[key] += int(suite.get(key, "0"))
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    found.failures = None
    found.tests = record.Counts(passed=passed, failed=failed, skipped=total["skipped"])


def _sanitizer(found: record.Record, options: argparse.Namespace) -> None:
    del options
    tool = shutil.which("compute-sanitizer", path=_toolkit_path())
    if tool is None:
        print("compute-sanitizer not found: it comes with the CUDA toolkit", flush=True)
        return
    found.sanitizer = record.Sanitizer(
        # What the libraries try and handle themselves is not a finding.
        memcheck=_watched([tool, "--report-api-errors", "no"], "memcheck", "ERROR SUMMARY: "),
        racecheck=_watched([tool], "racecheck", "RACECHECK SUMMARY: "),
    )


def _watched(sanitizer: list[str], tool: str, summary: str) -> int:
    """Run the grid under a tool and return the number at the head of its summary line."""
    grid = [sys.executable, "-m", "benchmarks.sanitizer_grid"]
    done = _run([*sanitizer, "--tool", tool, *grid], capture=True)
    counts = re.findall(rf"{summary}(\d+)", done.stdout)
    if counts:
        findings = sum(int(count) for count in counts)
        if findings:
            print(done.stdout[-20000:], flush=True)
        if findings or "calls done" in done.stdout:
            return findings
    raise SystemExit(f"{tool} gave no answer:\n{done.stdout[-5000:]}")


def _accuracy(found: record.Record, options: argparse.Namespace) -> None:
    from benchmarks import measurements

    del options
    found.accuracy = [*measurements.accuracy(), *_of_model(found, True)]


def _real_model(found: record.Record, options: argparse.Namespace) -> None:
    del options
    if missing := real_model.missing():
        print(f"real_model left out: {' and '.join(missing)} not installed", flush=True)
        return
    rows = list(real_model.accuracy(lambda command: _run(command).returncode, ours.family))
    found.accuracy = [*_of_model(found, False), *rows]


def _of_model(found: record.Record, wanted: bool) -> list[record.Accuracy]:
    """Return the errors inside the real model, or all the others."""
    return [
        row for row in found.accuracy if row.distribution.startswith(real_model.PREFIX) == wanted
    ]


def _timings(found: record.Record, options: argparse.Namespace) -> None:
    from benchmarks import measurements

    del options
    found.timings = list(measurements.timings())


PHASES: dict[str, Callable[[record.Record, argparse.Namespace], None]] = {
    "tests": _tests,
    "sanitizer": _sanitizer,
    "accuracy": _accuracy,
    "real_model": _real_model,
    "timings": _timings,
}


def _run(command: list[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
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


def _versions() -> dict[str, str]:
    from cupy.cuda import nvrtc, runtime

    def dotted(version: int) -> str:
        return f"{version // 1000}.{version % 1000 // 10}"

    versions = {
        "cuattn": cuattn.__version__,
        "python": platform.python_version(),
        "driver_cuda": dotted(runtime.driverGetVersion()),
        "nvrtc": ".".join(str(part) for part in nvrtc.getVersion()),
    }
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _findings(found: record.Record) -> int:
    return (found.sanitizer.memcheck or 0) + (found.sanitizer.racecheck or 0)


def _slug(gpu: str) -> str:
    """Return a file name: "NVIDIA H200" becomes "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except CuattnError as error:
        raise SystemExit(f"gpu_check: {error}") from None
