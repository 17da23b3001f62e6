"""Times of attention with as many queries as keys: ours and others', in turns.

A run is bound once for each implementation; its calls are then timed one way or another, and rows
made of the times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from ..choice.timing import ROUNDS, WARMUP, ColdL2, Median, time_gpu
from ..records.record import Timing
from ..records.rows import State
from ..reference.arrays import Progress
from . import ours
from .baselines import registry as baselines
from .baselines.registry import Baseline
from .cases import Case
from .inputs import noise, token_noise
from .left_out import LeftOut

KIND = "prefill"

# Fillings of the cache between two calls.
REST = 8


class Who(NamedTuple):
    """Whose call it is, what it computes, and by which kernels."""

    implementation: str
    scheme: str
    family: str


# A call of someone: on quantized operands, or from float16.
Call: TypeAlias = tuple[Who, Literal["kernel", "end_to_end"]]


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
    warmup: int = WARMUP,
    rest: int = REST,
    kind: str = KIND,
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
    warmup : int
        Rounds before these that do not count.
    rest : int
        How often the cache is filled before each call: what draws much power, as products of
        float16 do, slows down what runs right after it.
    kind : str
        What the record calls it.
    """
    runs = bind(case, schemes, present, left_out)
    flush = partial(ColdL2, None, rest)
    times = time_gpu(
        calls(runs), rounds=rounds, warmup=warmup, flush=flush, progress=progress, order_seed=0
    )
    yield from rows(case, runs, times, kind=kind)


def bind(
    case: Case, schemes: Sequence[str], present: Sequence[Baseline], left_out: LeftOut
) -> dict[Who, ours.Run]:
    """Return the calls of schemes and baselines on one shape, whose noise they share."""
    q = noise(case, 0)
    k, v = (token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))
    runs = {
        Who(ours.NAME, scheme, ours.family(scheme, case)): ours.prepare(q, k, v, case, scheme)
        for scheme in schemes
    }
    for baseline in present:
        run = baselines.bound(baseline, q, k, v, case, left_out)
        if run is not None:
            runs[Who(baseline.name, baseline.scheme, baselines.FAMILY)] = run
    return runs


def calls(runs: Mapping[Who, ours.Run]) -> dict[Call, Callable[[], object]]:
    """Return all that is to be timed: where the kernel is all there is, it is one call."""
    found: dict[Call, Callable[[], object]] = {}
    for who, run in runs.items():
        found[who, "end_to_end"] = run.end_to_end
        if run.kernel is not None and run.kernel is not run.end_to_end:
            found[who, "kernel"] = run.kernel
    return found


def rows(
    case: Case,
    runs: Mapping[Who, ours.Run],
    times: Mapping[Call, Median],
    *,
    kind: str = KIND,
    state: State = "cold",
    model: str | None = None,
    feature: str | None = None,
    operations: int | None = None,
) -> Iterator[Timing]:
    """Yield the rows of a record of the times of `calls`, or of those from float16 alone.

    `operations` are those of the case if not said.
    """
    operations = case.operations if operations is None else operations
    for who, run in runs.items():
        end_to_end = times[who, "end_to_end"]
        is_one = run.kernel is run.end_to_end
        kernel = times.get((who, "kernel"), end_to_end if is_one else None)
        yield Timing(
            **asdict(case),
            case=kind,
            **who._asdict(),
            state=state,
            model=model,
            feature=feature,
            kernel_ms=kernel.ms if kernel else None,
            kernel_iqr_ms=kernel.iqr_ms if kernel else None,
            end_to_end_ms=end_to_end.ms,
            end_to_end_iqr_ms=end_to_end.iqr_ms,
            tops=operations / kernel.ms * 1e-9 if kernel else None,
        )
