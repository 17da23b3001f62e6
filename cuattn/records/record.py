"""The record of a GPU run: its form, and whether it still speaks for the code at hand.

`make gpu-check` writes one JSON file for each GPU into benchmarks/records/. Each phase of the check
has a digest in it of the kernels that it launches and of the modules that take part in that, so
that findings of other code show, and only these have to be made anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ..common.typed_json import ADDED, read, write
from .digest import digest, phase_digests
from .rows import Accuracy, Ceiling, FirstCall, LanguageModelRow, Shape, Timing

__all__ = [
    "Accuracy",
    "Ceiling",
    "Counts",
    "FirstCall",
    "LanguageModelRow",
    "PhaseRun",
    "Record",
    "Sanitizer",
    "Shape",
    "Status",
    "Timing",
    "TimingMethod",
    "digest",
    "load",
    "phase_digests",
    "problems",
    "records",
    "records_of_several",
    "save",
    "status",
]

# Of several GPUs, `make gpu-check-multi` leaves records that hold no more than their times.
OF_SEVERAL = re.compile(r"_x\d+$")

State = Literal["current", "stale", "outdated"]


@dataclass(frozen=True)
class Counts:
    """How many tests passed, failed (errors too) and were skipped."""

    passed: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class Sanitizer:
    """Findings of compute-sanitizer's tools; null for one that has not run."""

    memcheck: int | None = None
    racecheck: int | None = None
    synccheck: int | None = field(default=None, metadata=ADDED)
    initcheck: int | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True)
class PhaseRun:
    """A phase's last run.

    Attributes
    ----------
    digest : str
        Of the part of the code that the phase depends on, from `phase_digests`.
    seconds : float
        Wall clock.
    left_out : str, optional
        Why it has nothing to say: what it needs is not installed.
    failed : str, optional
        What went wrong, if it did not come to its end.
    """

    digest: str
    seconds: float
    left_out: str | None = None
    failed: str | None = None


@dataclass(frozen=True)
class TimingMethod:
    """How times are taken of the cases "comparison" and "model".

    Attributes
    ----------
    rounds, warmup : int
        Single calls of each that count, and before these.
    order_seed : int
        Of the random order in which all take turns in a round.
    flush_bytes, neutral_calls : int
        What is written between two calls, whose own it replaces in the L2 cache, and how often:
        clocks recover meanwhile from a kernel that draws much power, as float16 products do.
    sustained_s, settle_s : float
        Seconds of GPU time of calls in a row, and how many of them go by before times count.
    """

    rounds: int
    warmup: int
    order_seed: int
    flush_bytes: int
    neutral_calls: int
    sustained_s: float
    settle_s: float


@dataclass
class Record:
    """All that one GPU has been seen to do.

    Parameters
    ----------
    digest : str
        `digest()` of the code of the last run.
    gpu : str
        Name of the GPU, as the driver gives it.
    versions : dict of str to str
        Of the packages, the compiler and the driver.
    stale : str, optional
        Why no run of the present code could be had, if the record is of older code.
    failures : str, optional
        Which tests failed, or what the sanitizer found, and why, if it was not for want of
        something in the code at hand.
    tests, sanitizer, accuracy, timings, ceilings, first_calls, language_model
        What each phase of the check found; None or empty until it has run.
    phases : dict of str to PhaseRun
        When each ran last, by its name. Records from before there were any have none.
    method : TimingMethod, optional
        Of the timings that say cold or sustained.
    """

    digest: str
    gpu: str
    versions: dict[str, str]
    stale: str | None = None
    failures: str | None = None
    tests: Counts | None = None
    sanitizer: Sanitizer = field(default_factory=Sanitizer)
    accuracy: list[Accuracy] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    ceilings: list[Ceiling] = field(default_factory=list)
    first_calls: list[FirstCall] = field(default_factory=list)
    phases: dict[str, PhaseRun] = field(default_factory=dict, metadata=ADDED)
    method: TimingMethod | None = field(default=None, metadata=ADDED)
    language_model: list[LanguageModelRow] = field(default_factory=list, metadata=ADDED)

    def outdated(self, now: Mapping[str, str]) -> list[str]:
        """Return the phases that have not run to their end with code of these digests."""
        return [name for name in now if not self._speaks_for(name, now[name])]

    def state(self, now: Mapping[str, str]) -> State:
        """Return how the record relates to code whose phases have the digests `now`.

        "current" is of that code, "stale" of older code with the reason given, "outdated" without.
        """
        if not self.outdated(now):
            return "current"
        return "stale" if self.stale and self.stale.strip() else "outdated"

    def _speaks_for(self, phase: str, digest: str) -> bool:
        ran = self.phases.get(phase)
        return ran is not None and ran.digest == digest and ran.failed is None


@dataclass(frozen=True)
class Status:
    """One committed record and what it is worth for the code at hand; `str()` says it in a line."""

    path: Path
    record: Record
    state: State

    def __str__(self) -> str:
        tests, sanitizer = self.record.tests, self.record.sanitizer
        ran = f"{tests.passed} tests passed, {tests.failed} failed" if tests else "tests not run"
        found = [f"{tool}: {_findings(count)}" for tool, count in asdict(sanitizer).items()]
        about = {
            "current": "of this very code",
            "stale": f"of older code ({self.record.stale})",
            "outdated": "of other code in part or whole, no reason given",
        }[self.state]
        return f"{self.record.gpu}, {about}: {'; '.join([ran, *found])}"


def records() -> list[Path]:
    """Return the files of the committed records of one GPU, sorted by name."""
    return [path for path in _committed() if not OF_SEVERAL.search(path.stem)]


def records_of_several() -> list[Path]:
    """Return those of several GPUs."""
    return [path for path in _committed() if OF_SEVERAL.search(path.stem)]


def _committed() -> list[Path]:
    here = Path(__file__).parent
    installed = here / "committed"
    folder = installed if installed.is_dir() else here.parents[1] / "benchmarks" / "records"
    return sorted(folder.glob("*.json"))


def load(path: Path) -> Record:
    """Read a record and check its form.

    Raises
    ------
    ArgumentError
        If the file cannot be read or is not JSON, or a field is missing, unknown or of another
        type; names the field.
    """
    record: Record = read(path, Record)
    return record


def save(record: Record, path: Path) -> None:
    """Write a record, whole or not at all; a figure that is not finite becomes null."""
    write(asdict(record), path)


def status() -> list[Status]:
    """Return what each committed record is worth for the code at hand."""
    now = phase_digests()
    loaded = [(path, load(path)) for path in records()]
    return [Status(path, record, record.state(now)) for path, record in loaded]


def problems(record: Record) -> list[str]:
    """Return what keeps a record from standing beside the code at hand, one line each."""
    found = []
    now = phase_digests()
    if record.state(now) == "outdated":
        found.append(
            f"outdated, of other kernels or launch code: {', '.join(record.outdated(now))}; run "
            "make gpu-check, which makes these anew, or say why it cannot be run with "
            "benchmarks/gpu_check.py --stale 'REASON'"
        )
    if record.tests is None:
        found.append("the tests have not run")
    elif (record.tests.failed and not record.failures) or not record.tests.passed:
        found.append(f"{record.tests.failed} tests failed, {record.tests.passed} passed")
    for tool, count in asdict(record.sanitizer).items():
        if count is None or (count and not record.failures):
            found.append(f"compute-sanitizer {tool}: {_findings(count)}")
    rows = ("accuracy", "timings", "ceilings", "first_calls")
    found += [f"no {name.replace('_', ' ')}" for name in rows if not getattr(record, name)]
    return found


def _findings(count: int | None) -> str:
    return "not run" if count is None else f"{count} findings"
