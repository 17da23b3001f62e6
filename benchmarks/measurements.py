"""Phases of the GPU check that give figures: errors against float64, and times of prefill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import cuattn
from cuattn.bench import errors, exact, ours, prefill
from cuattn.bench.baselines import registry as baselines
from cuattn.bench.baselines.registry import Baseline
from cuattn.bench.cases import (
    ACCURACY,
    CORE,
    EVERY_SCHEME,
    HOST,
    LONG,
    LONG_FROM,
    PREFILL,
    QUANTIZE,
    SCHEMES,
    Case,
)
from cuattn.bench.errors import Point
from cuattn.bench.inputs import noise
from cuattn.bench.left_out import room_for
from cuattn.choice.timing import ROUNDS, WARMUP, Median, time_gpu, time_host
from cuattn.presets import resolve
from cuattn.records.record import Accuracy, Timing
from cuattn.reference import distributions
from cuattn.scheme import Scheme

from . import append, decode, decode_errors, host_calls, latent, papers
from .mma_family import mma_family

# Quantizers that differ: per token, per block of keys, and V transposed by token and by channel.
QUANTIZERS = (
    ("int8", "q"),
    ("int8", "k"),
    ("int8", "v"),
    ("int8-block", "k"),
    ("int8-block", "v"),
    ("int-flash", "v"),
    # 4 bits, of which two are packed to a byte.
    ("int4", "q"),
    ("int4", "k"),
)


# Rounds, those before that do not count, and the rest between calls of a long case, whose times
# differ little, and which draws power for longer.
OF_LONG = 12, 2, 40

# Of the kernels that are made of mma.sync, and of others' of that kind.
MMA_KIND = "mma-sync"
OF_MMA = ("int8", "int8-block", "fp16")
BESIDE_MMA = "pytorch-flash"


def accuracy(part: int = 0, parts: int = 1) -> Iterator[Accuracy]:
    """Yield the errors of every scheme and baseline on every distribution and case.

    The papers' schemes, and their cases beyond these, follow. Inputs are shared out among `parts`,
    as most of the time goes by on the host.
    """
    exact.check()
    present = baselines.present(left_out)
    points = accuracy_points()
    every = dict.fromkeys(x for some in points.values() for x in some)
    supported = ours.supported_schemes(every, left_out)
    for point, schemes in islice(points.items(), part, None, parts):
        compared = present if point[0] in ACCURACY else []
        yield from errors.of_schemes(
            point, [x for x in schemes if x in supported], compared, left_out
        )


def cache_accuracy() -> Iterator[Accuracy]:
    """Yield the errors of decoding from KV caches."""
    exact.check()
    yield from decode_errors.accuracy()


def left_out(what: str, reason: str) -> None:
    """Say what is not measured."""
    print(f"{what} left out: {reason}", flush=True)


def accuracy_points() -> dict[Point, list[Scheme]]:
    """Return the schemes to measure on each input: presets on most, the papers' on theirs."""
    presets = [resolve(name) for name in SCHEMES]
    points = {
        (case, name): presets
        for case in ACCURACY
        for name in (LONG if case.seqlen_kv > LONG_FROM else distributions.DISTRIBUTIONS)
    }
    for point, schemes in papers.points().items():
        points[point] = list(dict.fromkeys([*points.get(point, ()), *schemes]))
    return points


def prefill_timings() -> Iterator[Timing]:
    """Yield the times of attention, of the quantizers and of the host."""
    schemes, present = ours.supported_schemes(SCHEMES, left_out), baselines.present(left_out)
    yield from _host(schemes)
    yield from _quantizers()
    for case in PREFILL:
        timed = schemes if case in EVERY_SCHEME else [x for x in schemes if x in CORE]
        yield from _timed(case, timed, present, prefill.KIND)


def mma_timings() -> Iterator[Timing]:
    """Yield the times of the kernels that serve every GPU but Hopper, beside FlashAttention-2.

    That is made of the same instructions, so both show what is left of a GPU by them.
    """
    schemes = ours.supported_schemes(OF_MMA, left_out)
    present = [x for x in baselines.present(left_out) if x.name == BESIDE_MMA]
    with mma_family():
        for case in PREFILL:
            if not case.is_causal:
                yield from _timed(case, schemes, present, MMA_KIND)


def _timed(case: Case, schemes: list[str], present: list[Baseline], kind: str) -> Iterator[Timing]:
    """Yield the times on one shape, if there is room for it."""
    needed = prefill.bytes_needed(case, len(schemes) + len(present))
    with room_for(case, needed, left_out) as fits:
        if fits:
            is_long = case.seqlen_kv > LONG_FROM
            rounds, warmup, rest = OF_LONG if is_long else (ROUNDS, WARMUP, prefill.REST)
            yield from prefill.timings(
                case, schemes, present, left_out, rounds, warmup=warmup, rest=rest, kind=kind
            )


def cache_timings() -> Iterator[Timing]:
    """Yield the times of decoding from caches and of appending to them."""
    yield from decode.timings(baselines.present(left_out), left_out)
    yield from latent.timings(left_out)
    yield from append.timings(left_out)


def _quantizers() -> Iterator[Timing]:
    import cupy

    with room_for(QUANTIZE, 2 * QUANTIZE.input_bytes, left_out) as fits:
        if not fits:
            return
        x = noise(QUANTIZE, 0)
        copy = cupy.empty_like(x)

        def quantizer(scheme: str, operand: str) -> Any:
            return lambda: cuattn.quantize(x, operand=operand, scheme=scheme)

        functions = {pair: quantizer(*pair) for pair in QUANTIZERS}
        moved = {pair: x.nbytes + _quantized_bytes(f()) for pair, f in functions.items()}
        # What a call that quantizes all three operands spends on it.
        functions["int8", "all"] = lambda: [functions["int8", "q"](), *cuattn.quantize_kv(x, x)]
        moved["int8", "all"] = 3 * x.nbytes + sum(map(_quantized_bytes, functions["int8", "all"]()))
        functions["", "copy"] = lambda: copy.data.copy_from_device_async(x.data, x.nbytes)
        moved["", "copy"] = 2 * x.nbytes
        for (scheme, operand), time in time_gpu(functions).items():
            case = {"copy": "copy", "all": "quantize"}.get(operand, f"quantize-{operand}")
            yield _moved(case, scheme, time, moved[scheme, operand])


def _moved(case: str, scheme: str, time: Median, moved: int) -> Timing:
    return Timing(
        **asdict(QUANTIZE),
        case=case,
        implementation=ours.NAME if scheme else "cudaMemcpyAsync",
        scheme=scheme,
        family="quantize" if scheme else "baseline",
        kernel_ms=time.ms,
        kernel_iqr_ms=time.iqr_ms,
        gbps=moved / time.ms * 1e-6,
    )


def _quantized_bytes(quantized: Any) -> int:
    return int(quantized.codes.nbytes + quantized.scale.nbytes)


def _host(schemes: list[str]) -> Iterator[Timing]:
    q, k, v = (noise(HOST, seed) for seed in range(3))
    for scheme in schemes:
        time = time_host(ours.prepare(q, k, v, HOST, scheme).end_to_end)
        yield Timing(
            **asdict(HOST),
            case="host",
            implementation=ours.NAME,
            scheme=scheme,
            family=ours.family(scheme, HOST),
            end_to_end_ms=time.ms,
            end_to_end_iqr_ms=time.iqr_ms,
        )
    yield from host_calls.timings(left_out)
