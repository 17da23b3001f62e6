"""Times of attention with as many queries as keys: ours and others', in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from ..choice.timing import ROUNDS, time_gpu
from ..records.record import Timing
from ..reference.arrays import Progress
from . import ours
from .baselines import registry as baselines
from .baselines.registry import Baseline
from .cases import Case
from .inputs import noise
from .left_out import LeftOut

KIND = "prefill"


def bytes_needed(case: Case, implementations: int) -> int:
    """Return the memory that a case takes: of each implementation codes, output and workspace."""
    return (3 + implementations) * case.input_bytes


def timings(
    case: Case,
    schemes: Sequence[str],
    present: Sequence[Baseline],
    left_out: LeftOut,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Iterator[Timing]:
    """Yield the times of every scheme and baseline on one shape: kernel only, and end to end.

    Parameters
    ----------
    case : Case
    schemes : sequence of str
        Those that the GPU has kernels of.
    present : sequence of Baseline
        From `baselines.present`.
    left_out : callable
        Told which of these fail on this shape, and why.
    rounds : int
        How often each is run.
    progress : callable, optional
        Called with (rounds done, rounds in all).
    """
    q, k, v = (noise(case, seed) for seed in range(3))
    runs = {
        (ours.NAME, scheme, ours.family(scheme, case)): ours.prepare(q, k, v, case, scheme)
        for scheme in schemes
    }
    for baseline in present:
        run = baselines.bound(baseline, q, k, v, case, left_out)
        if run is not None:
            runs[baseline.name, baseline.scheme, baselines.FAMILY] = run
    functions = {}
    for who, run in runs.items():
        functions[who, "end_to_end"] = run.end_to_end
        if run.kernel is not None and run.kernel is not run.end_to_end:
            functions[who, "kernel"] = run.kernel
    times = time_gpu(functions, rounds=rounds, progress=progress)
    for who, run in runs.items():
        end_to_end = times[who, "end_to_end"]
        kernel = times.get((who, "kernel"), end_to_end if run.kernel else None)
        implementation, scheme, family = who
        yield Timing(
            **asdict(case),
            case=KIND,
            implementation=implementation,
            scheme=scheme,
            family=family,
            kernel_ms=kernel.ms if kernel else None,
            kernel_iqr_ms=kernel.iqr_ms if kernel else None,
            end_to_end_ms=end_to_end.ms,
            end_to_end_iqr_ms=end_to_end.iqr_ms,
            tops=case.operations / kernel.ms * 1e-9 if kernel else None,
        )
