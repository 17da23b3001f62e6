"""What the GPU check consists of: each phase finds its own part of a record.

A phase runs in processes of its own, so that what it breaks is broken for itself only, and some
share their work out among several. What they find comes back as `Findings`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from benchmarks import commands, first_results, kernels, language_model, real_model
from cuattn.bench import ours
from cuattn.bench.caches import FAMILY
from cuattn.records.record import (
    Accuracy,
    Ceiling,
    Counts,
    FirstCall,
    LanguageModelRow,
    Record,
    Sanitizer,
    Timing,
    TimingMethod,
)

__all__ = ["ALONE", "PHASES", "TOGETHER", "Findings", "Phase", "Share", "merge"]


@dataclass
class Findings:
    """What a process of a phase found; what is not the phase's stays empty.

    Attributes
    ----------
    left_out : str, optional
        Why there is nothing: what the phase needs is not installed.
    """

    left_out: str | None = None
    tests: Counts | None = None
    sanitizer: Sanitizer = field(default_factory=Sanitizer)
    accuracy: list[Accuracy] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    ceilings: list[Ceiling] = field(default_factory=list)
    first_calls: list[FirstCall] = field(default_factory=list)
    language_model: list[LanguageModelRow] = field(default_factory=list)
    method: TimingMethod | None = None

    def __add__(self, other: Findings) -> Findings:
        """Return both, of two processes that shared a phase's work."""
        return Findings(
            left_out=self.left_out or other.left_out,
            tests=self.tests or other.tests,
            sanitizer=Sanitizer(
                **{
                    tool: _sum(count, getattr(other.sanitizer, tool))
                    for tool, count in asdict(self.sanitizer).items()
                }
            ),
            accuracy=self.accuracy + other.accuracy,
            timings=self.timings + other.timings,
            ceilings=self.ceilings + other.ceilings,
            first_calls=self.first_calls + other.first_calls,
            language_model=self.language_model + other.language_model,
            method=self.method or other.method,
        )


@dataclass(frozen=True)
class Share:
    """What one process of a phase has to do.

    Attributes
    ----------
    part, parts : int
        Its number, from 0 on, of how many.
    options : str
        For pytest.
    """

    part: int
    parts: int
    options: str


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes
    ----------
    run : callable
        Does a process's share of the work.
    limit_s : float
        Wall clock; what takes longer is ended, so that it takes no time from the others.
    parts : int
        Processes that share the work.
    """

    run: Callable[[Share], Findings]
    limit_s: float
    parts: int = 1


def _kernels(_: Share) -> Findings:
    print(f"{kernels.compile_all()} kernels compiled", flush=True)
    return Findings()


def _tests(share: Share) -> Findings:
    return Findings(tests=commands.tests(share.options))


def _sanitizer(share: Share) -> Findings:
    found = commands.sanitizer(share.part)
    return Findings(left_out=commands.NO_SANITIZER) if found is None else Findings(sanitizer=found)


def _accuracy(share: Share) -> Findings:
    from benchmarks import measurements

    return Findings(accuracy=list(measurements.accuracy(share.part, share.parts)))


def _cache_accuracy(_: Share) -> Findings:
    from benchmarks import measurements

    return Findings(accuracy=list(measurements.cache_accuracy()))


def _real_model(_: Share) -> Findings:
    if missing := real_model.missing():
        return Findings(left_out=f"{' and '.join(missing)} not installed")
    rows = real_model.accuracy(lambda command: commands.run(command).returncode, ours.family)
    return Findings(accuracy=list(rows))


def _language_model(share: Share) -> Findings:
    if reason := language_model.missing():
        return Findings(left_out=reason)
    import cupy

    texts = language_model.TEXTS[share.part :: share.parts]
    return Findings(language_model=list(language_model.rows(cupy, texts)))


def _ceilings(_: Share) -> Findings:
    from cuattn.bench import ceilings

    return Findings(ceilings=ceilings.measure())


def _prefill(_: Share) -> Findings:
    from benchmarks import measurements

    return Findings(timings=list(measurements.prefill_timings()))


def _comparison(_: Share) -> Findings:
    from benchmarks import measurements, states

    rows = list(states.comparison(measurements.left_out))
    return Findings(timings=rows, method=states.METHOD)


def _features(_: Share) -> Findings:
    from benchmarks import features, measurements

    return Findings(timings=list(features.timings(measurements.left_out)))


def _models(_: Share) -> Findings:
    from benchmarks import measurements, states

    return Findings(timings=list(states.models(measurements.left_out)), method=states.METHOD)


def _mma_sync(_: Share) -> Findings:
    from benchmarks import measurements

    return Findings(timings=list(measurements.mma_timings()))


def _auto(_: Share) -> Findings:
    from benchmarks import measurements
    from cuattn.bench import auto_table

    return Findings(timings=list(auto_table.timings(measurements.left_out)))


def _decode(_: Share) -> Findings:
    from benchmarks import measurements

    return Findings(timings=list(measurements.cache_timings()))


def _chunk(_: Share) -> Findings:
    from benchmarks import chunks, measurements

    return Findings(timings=list(chunks.timings(measurements.left_out)))


def _ring(_: Share) -> Findings:
    from benchmarks import measurements, rings

    return Findings(timings=list(rings.timings(measurements.left_out)))


def _first_calls(_: Share) -> Findings:
    return Findings(first_calls=list(first_results.first_calls()))


# In the order in which they run. Kernels are compiled beforehand, on all cores; phases that measure
# no times then run side by side; and those that do by themselves, one after the other. What is
# compiled by the limit is a help, and no finding.
KERNELS = "kernels"
TOGETHER = {
    "tests": Phase(_tests, 480),
    "sanitizer": Phase(_sanitizer, 200, parts=commands.SANITIZER_PARTS),
    "accuracy": Phase(_accuracy, 210, parts=4),
    "cache_accuracy": Phase(_cache_accuracy, 60),
    "real_model": Phase(_real_model, 120),
    "language_model": Phase(_language_model, 300, parts=len(language_model.TEXTS)),
}
ALONE = {
    "ceilings": Phase(_ceilings, 30),
    "prefill": Phase(_prefill, 150),
    "comparison": Phase(_comparison, 75),
    "features": Phase(_features, 150),
    "models": Phase(_models, 75),
    "mma_sync": Phase(_mma_sync, 45),
    "auto": Phase(_auto, 60),
    "decode": Phase(_decode, 90),
    "chunk": Phase(_chunk, 60),
    "ring": Phase(_ring, 75),
    "first_calls": Phase(_first_calls, 90),
}
# The phases of cases that are not `prefill`'s or of caches.
OF_CASES = {
    "comparison": "comparison",
    "model": "models",
    "mma-sync": "mma_sync",
    "auto": "auto",
    "chunk": "chunk",
    **dict.fromkeys(("ring-virtual", "merge", "copy-merge"), "ring"),
}
# How those of caches begin.
OF_CACHES = ("decode", "append", "copy-decode", "mla-decode", "copy-mla-decode")
PHASES = {KERNELS: Phase(_kernels, 60), **TOGETHER, **ALONE}


def merge(found: Record, phase: str, new: Findings) -> None:
    """Replace a phase's part of a record."""
    if new.tests is not None:
        found.failures, found.tests = None, new.tests
    if phase == "sanitizer" and new.left_out is None:
        found.sanitizer = new.sanitizer
    if new.ceilings:
        found.ceilings = new.ceilings
    if new.first_calls:
        found.first_calls = new.first_calls
    if new.language_model:
        found.language_model = new.language_model
    found.method = new.method or found.method
    order = [*PHASES]
    accuracy = [x for x in found.accuracy if of_accuracy(x) != phase] + new.accuracy
    found.accuracy = sorted(accuracy, key=lambda x: order.index(of_accuracy(x)))
    timings = [x for x in found.timings if of_timing(x) != phase] + new.timings
    found.timings = sorted(timings, key=lambda x: order.index(of_timing(x)))


def of_accuracy(row: Accuracy) -> str:
    """Return the phase that found an error."""
    if row.distribution.startswith(real_model.PREFIX):
        return "real_model"
    return "cache_accuracy" if row.family == FAMILY else "accuracy"


def of_timing(row: Timing) -> str:
    """Return the phase that found a time."""
    decodes = row.case.startswith(OF_CACHES)
    if row.feature and row.case not in OF_CASES:
        return "features"
    return "decode" if decodes else OF_CASES.get(row.case, "prefill")


def _sum(a: int | None, b: int | None) -> int | None:
    return a + b if a is not None and b is not None else b if a is None else a
