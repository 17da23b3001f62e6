"""Check the kernels on this computer's GPU and write what was found into its record.

Each phase replaces its own part of the record, and has a digest in it of the files that it depends
on: only phases whose files have changed since are run, or those asked for. The record is written
after each. Run from the root of the project: python -m benchmarks.gpu_check
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import tables
from benchmarks.phases import ALONE, KERNELS, PHASES, TOGETHER, merge, of_accuracy, of_timing
from benchmarks.schedule import LAST_LINES, Outcome, Schedule
from cuattn.arrays.device import current_device
from cuattn.bench.results import PACKAGES, versions
from cuattn.errors import CuattnError
from cuattn.records import record

RECORDS = Path(__file__).resolve().parent / "records"

# What tests take, besides what is timed.
TESTED_WITH = ("pytest", "hypothesis", "jax")

# Said of a phase besides how it ended.
MOST_LINES = 40

# What only a person can say about a record.
REASONS = {
    "stale": "why there is no newer one: no GPU could be had",
    "failures": "which tests failed, or what the sanitizer found, and why, if not for the code",
}


def main() -> int:
    """Run the phases that are outdated, or asked for; return 0 if nothing failed."""
    options = _options()
    said = {key: getattr(options, key) for key in REASONS if getattr(options, key) is not None}
    if said:
        for path in record.records():
            record.save(replace(record.load(path), **said), path)
        return 0
    begun = time.monotonic()
    gpu = current_device().name
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{slug(gpu)}.json"
    found = _begun(path, gpu)
    now = record.phase_digests()
    asked = options.phases.split(",") if options.phases else found.outdated(now)
    if asked and not options.phases:
        asked = [KERNELS, *asked]
    outcomes = []
    for outcome in _outcomes(asked, path.parent, options, begun + options.within):
        # What failed takes nothing back that was found with the same code.
        if outcome.phase in now and (not outcome.failed or outcome.phase in found.outdated(now)):
            _enter(found, outcome, now[outcome.phase])
            record.save(found, path)
        outcomes.append(outcome)
        print("\n".join([*_said(outcome), _line(outcome)]), flush=True)
    record.save(found, path)
    print(tables.show(found))
    # Once more, as the tables are long.
    print("\n".join(["", *map(_line, outcomes), f"== all: {time.monotonic() - begun:.0f} s"]))
    failed = [x.phase for x in outcomes if x.failed is not None and x.phase != KERNELS]
    return 1 if failed or (found.tests and found.tests.failed) or _findings(found) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument(
        "--phases",
        metavar="NAMES",
        help=f"which to run, by default those that are outdated: some of {','.join(PHASES)}",
    )
    parser.add_argument(
        "--within",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="end by then, with what has been found",
    )
    parser.add_argument("--pytest", default="", metavar="OPTIONS", help="passed to pytest")
    for key, about in REASONS.items():
        parser.add_argument(
            f"--{key}", metavar="REASON", help=f"only write into the records {about}"
        )
    options = parser.parse_args()
    unknown = set(options.phases.split(",") if options.phases else ()) - set(PHASES)
    if unknown:
        parser.error(f"no such phase: {', '.join(sorted(unknown))}")
    for key in REASONS:
        if (reason := getattr(options, key)) is not None and not reason.strip():
            parser.error(f"--{key} needs a reason in words")
    return options


def _outcomes(
    asked: list[str], out: Path, options: argparse.Namespace, end: float
) -> Iterator[Outcome]:
    """Run phases and yield how each ended; logs of those that failed stay beside the record."""
    logs = out / "logs"
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        schedule = Schedule(Path(folder), options.pytest, end)
        groups = [
            schedule.in_turn([x for x in asked if x == KERNELS]),
            schedule.together([x for x in asked if x in TOGETHER]),
            schedule.in_turn([x for x in asked if x in ALONE]),
        ]
        for group in groups:
            for outcome in group:
                (logs / f"{outcome.phase}.log").write_text(outcome.log, encoding="utf-8")
                yield outcome


def _enter(found: record.Record, outcome: Outcome, digest: str) -> None:
    """Put into a record how a phase ended, and what it found."""
    left_out = None
    if outcome.findings is not None:
        left_out = outcome.findings.left_out
        merge(found, outcome.phase, outcome.findings)
    found.phases[outcome.phase] = record.PhaseRun(
        digest=digest,
        seconds=round(outcome.seconds, 1),
        left_out=left_out,
        failed=outcome.failed,
    )


def _line(outcome: Outcome) -> str:
    """Return a phase's line in the summary."""
    about = [f"{outcome.seconds:.0f} s"]
    if outcome.findings is not None and (tests := outcome.findings.tests) is not None:
        about.append(f"{tests.passed} passed, {tests.failed} failed, {tests.skipped} skipped")
    if outcome.failed is not None:
        about.append(f"failed: {outcome.failed}")
    return f"== {outcome.phase}: {', '.join(about)}"


def _said(outcome: Outcome) -> list[str]:
    """Return what is worth knowing of what a phase wrote."""
    lines = outcome.log.splitlines()
    # Of pytest's lines, those of its summary; without one, what it said as it went.
    ended = outcome.failed is None
    failures = [x for x in lines if (x.startswith("FAILED ") if ended else "] FAILED " in x)]
    said = [*failures, *(x for x in lines if " left out: " in x)]
    said = list(dict.fromkeys(said))[:MOST_LINES]
    if outcome.findings is not None and outcome.findings.left_out:
        said.append(f"{outcome.phase} left out: {outcome.findings.left_out}")
    if outcome.failed is not None:
        said += lines[-LAST_LINES:]
    return said


def _begun(path: Path, gpu: str) -> record.Record:
    """Return the record that this run adds to, without findings of phases that it does not name."""
    now, used = record.digest(), versions((*PACKAGES, *TESTED_WITH))
    for known in (path, RECORDS / path.name):
        if known.exists():
            old = record.load(known)
            ran = old.phases
            return replace(
                old,
                digest=now,
                versions=used,
                stale=None,
                tests=old.tests if "tests" in ran else None,
                failures=old.failures if "tests" in ran else None,
                sanitizer=old.sanitizer if "sanitizer" in ran else record.Sanitizer(),
                accuracy=[x for x in old.accuracy if of_accuracy(x) in ran],
                timings=[x for x in old.timings if of_timing(x) in ran],
                ceilings=old.ceilings if "ceilings" in ran else [],
                first_calls=old.first_calls if "first_calls" in ran else [],
                language_model=old.language_model if "language_model" in ran else [],
                method=old.method if ran.keys() & {"comparison", "models"} else None,
            )
    return record.Record(digest=now, gpu=gpu, versions=used)


def _findings(found: record.Record) -> int:
    return sum(count or 0 for count in asdict(found.sanitizer).values())


def slug(gpu: str) -> str:
    """Return a file name: "NVIDIA H200" becomes "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except CuattnError as error:
        raise SystemExit(f"gpu_check: {error}") from None
