"""Times cold and sustained: others beside ours at the same shapes, and shapes of real models.

In both everything takes turns in one process, in a random order, with neutral calls in between: a
kernel that draws much power, as float16 products do, slows down what runs right after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

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

# What fails on one shape need not fail on the next.
FAILURES = (RuntimeError, MemoryError)


def comparison(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of a few schemes and all baselines on `COMPARISON`, in both states."""
    schemes = ours.supported_schemes(COMPARED, left_out)
    present = baselines.present(left_out)
    for case in COMPARISON:
        yield from _timed(case, schemes, present, left_out, kind=COMPARISON_KIND)


def models(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times from float16 of a few schemes and of baselines in float16 on `MODELS`."""
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
            cold, sustained = in_both_states(functions)
        except FAILURES as error:
            left_out(str(case), in_a_line(error))
            return
        yield from prefill.rows(case, runs, cold, state="cold", **about)
        yield from prefill.rows(case, runs, sustained, state="sustained", **about)


def in_both_states(
    functions: Mapping[prefill.Call, Callable[[], object]],
) -> tuple[dict[prefill.Call, Median], dict[prefill.Call, Median]]:
    """Return the times of single calls, and of calls in a row, by `METHOD`."""
    neutral = partial(ColdL2, METHOD.flush_bytes, METHOD.neutral_calls)
    cold = time_gpu(
        functions,
        rounds=METHOD.rounds,
        warmup=METHOD.warmup,
        flush=neutral,
        order_seed=METHOD.order_seed,
    )
    sustained = time_sustained(
        functions,
        seconds=METHOD.sustained_s,
        settle=METHOD.settle_s,
        neutral=neutral,
        order_seed=METHOD.order_seed,
    )
    return cold, sustained
