"""Times of others beside ours at the same shapes, cold and sustained, and of shapes of real models.

Everything takes turns in one process, in a random order, with neutral calls in between: a
kernel that draws much power, as float16 products do, slows down what runs right after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from cuattn.bench import ours, prefill
from cuattn.bench.baselines import registry as baselines
from cuattn.bench.baselines.registry import Baseline
from cuattn.bench.cases import COMPARED, COMPARISON, Case
from cuattn.bench.left_out import LeftOut, in_a_line, room_for
from cuattn.bench.models import MODELS
from cuattn.choice.timing import (
    FLUSH_BYTES,
    SETTLE_S,
    SUSTAINED_S,
    ColdL2,
    Median,
    time_gpu,
    time_sustained,
)
from cuattn.records.record import Timing, TimingMethod
from cuattn.records.rows import State

__all__ = ["COMPARISON_KIND", "METHOD", "MODEL_KIND", "comparison", "models"]

COMPARISON_KIND, MODEL_KIND = "comparison", "model"

METHOD = TimingMethod(
    rounds=10,
    warmup=2,
    order_seed=0,
    flush_bytes=FLUSH_BYTES,
    neutral_calls=8,
    sustained_s=SUSTAINED_S,
    settle_s=SETTLE_S,
)

NEUTRAL = partial(ColdL2, METHOD.flush_bytes, METHOD.neutral_calls)

Functions: TypeAlias = Mapping[prefill.Call, Callable[[], object]]
Medians: TypeAlias = dict[prefill.Call, Median]

# What fails on one shape need not fail on the next.
FAILURES = (RuntimeError, MemoryError)


def comparison(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of a few schemes and all baselines on `COMPARISON`, in both states."""
    schemes = ours.supported_schemes(COMPARED, left_out)
    present = baselines.present(left_out)
    for case in COMPARISON:
        bound = partial(_timed, case, schemes, present, left_out, kind=COMPARISON_KIND)
        yield from bound(states=("cold", "sustained"))


def models(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times from float16 of a few schemes and of baselines in float16 on `MODELS`.

    Of single calls only: a model has other kernels between those of attention.
    """
    schemes = ours.supported_schemes(COMPARED, left_out)
    present = [x for x in baselines.present(left_out) if x.scheme == "fp16"]
    for model in MODELS:
        about = {"kind": MODEL_KIND, "model": model.name}
        yield from _timed(model.case, schemes, present, left_out, end_to_end=True, **about)


def _timed(
    case: Case,
    schemes: Sequence[str],
    present: Sequence[Baseline],
    left_out: LeftOut,
    *,
    states: Sequence[State] = ("cold",),
    end_to_end: bool = False,
    **about: Any,
) -> Iterator[Timing]:
    """Yield the rows of one shape; with `end_to_end` of calls from float16 only."""
    needed = prefill.bytes_needed(case, len(schemes) + len(present))
    with room_for(case, needed, left_out) as fits:
        if not fits:
            return
        try:
            runs = prefill.bind(case, schemes, present, left_out)
            functions = prefill.calls(runs)
            if end_to_end:
                functions = {call: f for call, f in functions.items() if call[1] == "end_to_end"}
            times = {state: TIMED[state](functions) for state in states}
        except FAILURES as error:
            left_out(str(case), in_a_line(error))
            return
        for state, found in times.items():
            yield from prefill.rows(case, runs, found, state=state, **about)


def cold(functions: Functions) -> Medians:
    """Return the times of single calls by `METHOD`."""
    return time_gpu(
        functions,
        rounds=METHOD.rounds,
        warmup=METHOD.warmup,
        flush=NEUTRAL,
        order_seed=METHOD.order_seed,
    )


def sustained(functions: Functions) -> Medians:
    """Return the times of calls in a row by `METHOD`."""
    return time_sustained(
        functions,
        seconds=METHOD.sustained_s,
        settle=METHOD.settle_s,
        neutral=NEUTRAL,
        order_seed=METHOD.order_seed,
    )


TIMED: dict[State, Callable[[Functions], Medians]] = {"cold": cold, "sustained": sustained}
