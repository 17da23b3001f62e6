"""What the GPU check consists of: each phase fills in its own part of a record."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import commands, first_results, real_model
from cuattn.bench import ours
from cuattn.records.record import Accuracy, Record

__all__ = ["PHASES"]


def _tests(found: Record, options: argparse.Namespace) -> None:
    found.failures, found.tests = None, commands.tests(options.pytest)


def _sanitizer(found: Record, options: argparse.Namespace) -> None:
    del options
    found.sanitizer = commands.sanitizer() or found.sanitizer


def _accuracy(found: Record, options: argparse.Namespace) -> None:
    from benchmarks import measurements

    del options
    found.accuracy = [*measurements.accuracy(), *_of_model(found, True)]


def _real_model(found: Record, options: argparse.Namespace) -> None:
    del options
    if missing := real_model.missing():
        print(f"real_model left out: {' and '.join(missing)} not installed", flush=True)
        return
    rows = list(real_model.accuracy(lambda command: commands.run(command).returncode, ours.family))
    found.accuracy = [*_of_model(found, False), *rows]


def _of_model(found: Record, wanted: bool) -> list[Accuracy]:
    """Return the errors inside the real model, or all the others."""
    return [
        row for row in found.accuracy if row.distribution.startswith(real_model.PREFIX) == wanted
    ]


def _ceilings(found: Record, options: argparse.Namespace) -> None:
    from cuattn.bench import ceilings
    from cuattn.choice import timing

    del options
    found.ceilings = ceilings.measure(rounds=timing.ROUNDS)


def _timings(found: Record, options: argparse.Namespace) -> None:
    from benchmarks import measurements

    del options
    found.timings = list(measurements.timings())


def _first_calls(found: Record, options: argparse.Namespace) -> None:
    del options
    found.first_calls = list(first_results.first_calls())


PHASES: dict[str, Callable[[Record, argparse.Namespace], None]] = {
    "tests": _tests,
    "sanitizer": _sanitizer,
    "accuracy": _accuracy,
    "real_model": _real_model,
    "ceilings": _ceilings,
    "timings": _timings,
    "first_calls": _first_calls,
}
