"""One run of `cuattn bench`: everything on the grid, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TypeAlias, TypeVar

from ..arrays.device import current_device, target
from ..compile.jit import precompile
from ..errors import CuattnError
from ..records.record import Accuracy, digest
from ..reference.arrays import Progress
from . import ceilings, decode, errors, exact, ours, prefill
from .baselines import registry as baselines
from .baselines.registry import Baseline
from .cases import Case
from .errors import Point
from .grid import Grid, kernels
from .left_out import LeftOut, in_a_line, room_for
from .results import Results, versions

__all__ = ["Task", "begun", "measure"]

# From the name of a part to the callback of its progress.
Task: TypeAlias = Callable[[str], Progress]
T = TypeVar("T")

# What fails on one shape need not fail on the next.
FAILURES = (CuattnError, RuntimeError, MemoryError, ImportError)

# What a shape takes before it is timed, as operations of attention.
SETUP_OPERATIONS = 10**12


def begun(rounds: int) -> Results:
    """Return results of the current GPU without any figures.

    Raises
    ------
    NoGPUError, UnsupportedError
        If there is no GPU that has kernels.
    """
    return Results(
        digest=digest(),
        gpu=current_device().name,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        rounds=rounds,
        versions=versions(),
    )


def measure(
    grid: Grid,
    found: Results,
    *,
    with_baselines: bool = True,
    task: Task,
    say: LeftOut,
) -> None:
    """Measure a grid on the current GPU.

    What fails is left out and does not end the run.

    Parameters
    ----------
    grid : Grid
    found : Results
        From `begun`. Figures are added as they are found, so that an interrupted run has them.
    with_baselines : bool
        Whether others' kernels that can be imported are measured, too.
    task : callable
        From the name of a part of the run to a callback of its progress.
    say : callable
        Told once about each scheme, baseline and shape that is left out, and why.

    Raises
    ------
    CompileError, CuattnError
        If the kernels cannot be compiled, or not be stored.
    """

    def left_out(what: str, reason: str) -> None:
        if what not in found.left_out:
            found.left_out[what] = reason
            say(what, reason)

    facts = target(current_device().arch)
    schemes = ours.supported_schemes(grid.schemes, left_out)
    specs = kernels(grid, schemes, facts)
    precompile(specs, [facts.arch], progress=task(f"compiling {len(specs)} kernels"))
    if grid.ceilings:
        task("ceilings")
        with _told("ceilings", left_out):
            found.ceilings += ceilings.measure(found.rounds)
    present = []
    if with_baselines and (grid.prefill or grid.decode or grid.errors):
        task("importing baselines")
        present = baselines.present(left_out)
    for case, show in _in_turn(grid.prefill, _work, task("prefill")):
        needed = prefill.bytes_needed(case, len(schemes) + len(present))
        with _told(str(case), left_out), room_for(case, needed, left_out) as fits:
            if fits:
                found.timings += prefill.timings(
                    case, schemes, present, left_out, found.rounds, show
                )
    for case, show in _in_turn(grid.decode, _tokens, task("decode")):
        needed = decode.bytes_needed(case)
        with _told(str(case), left_out), room_for(case, needed, left_out) as fits:
            if fits:
                found.timings += decode.timings(case, present, left_out, found.rounds, show)
    if grid.errors:
        with _told("errors", left_out):
            exact.check()
            for point, _ in _in_turn(grid.errors, lambda _: 1, task("errors")):
                with _told("errors, {}, {}".format(*point), left_out):
                    found.accuracy += _errors(point, schemes, present, left_out)


def _errors(
    point: Point, schemes: Sequence[str], present: Sequence[Baseline], left_out: LeftOut
) -> Iterator[Accuracy]:
    if point[0].decodes:
        return errors.of_caches(point)
    return errors.of_schemes(point, schemes, present, left_out)


def _work(case: Case) -> int:
    return SETUP_OPERATIONS + case.operations


def _tokens(case: Case) -> int:
    return case.batch * case.seqlen_kv


def _in_turn(
    items: Sequence[T], size: Callable[[T], int], show: Progress
) -> Iterator[tuple[T, Progress]]:
    """Yield items, each with a callback of its own, and show the share of their sizes done."""
    total = sum(map(size, items))
    before = 0
    for item in items:
        yield item, _part(show, before, size(item), total)
        before += size(item)
        show(before, total)


def _part(show: Progress, before: int, size: int, total: int) -> Progress:
    return lambda done, steps: show(before + size * done // steps, total)


@contextmanager
def _told(what: str, left_out: LeftOut) -> Iterator[None]:
    """Tell of a failure instead of raising it."""
    try:
        yield
    except FAILURES as error:
        left_out(what, in_a_line(error))
