"""The two phases of the GPU check that give figures: errors against float64, and times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import cuattn
from cuattn.presets import resolve
from cuattn.record import Accuracy, Timing
from cuattn.reference import distributions
from cuattn.scheme import Scheme

from . import append, baselines, decode, decode_errors, exact, ours, papers
from .baselines import Baseline
from .cases import (
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
from .gpu_memory import give_back, room_for
from .inputs import inputs, noise
from .timing import Median, time_gpu, time_host

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


def accuracy() -> Iterator[Accuracy]:
    """Yield the errors of every scheme and baseline on every distribution and case.

    The papers' schemes, and their cases beyond these, follow, and those of the KV cache.
    """
    exact.check()
    present = baselines.present()
    points = accuracy_points()
    supported = ours.supported_schemes(dict.fromkeys(x for some in points.values() for x in some))
    for (case, name), schemes in points.items():
        q, k, v = inputs(case, name)
        wanted = exact.attention(q, k, v, is_causal=case.is_causal).get()
        for scheme in schemes:
            if scheme in supported:
                o = ours.prepare(q, k, v, case, scheme).end_to_end()
                yield exact.errors(o, wanted, case, name, scheme.name, ours.family(scheme, case))
        for baseline in present if case in ACCURACY else ():
            run = baselines.bound(baseline, q, k, v, case)
            if run is not None:
                o = run.end_to_end()
                yield exact.errors(o, wanted, case, name, baseline.name, baselines.FAMILY)
        give_back()
    yield from decode_errors.accuracy()


def accuracy_points() -> dict[papers.Point, list[Scheme]]:
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


def timings() -> Iterator[Timing]:
    """Yield the times of attention, of the quantizers, of the host and of the KV cache."""
    schemes, present = list(ours.supported_schemes(SCHEMES)), baselines.present()
    yield from _host(schemes)
    yield from _quantizers()
    for case in PREFILL:
        with room_for(case, 14 * case.input_bytes) as fits:
            if fits:
                timed = schemes if case in EVERY_SCHEME else [x for x in schemes if x in CORE]
                yield from _prefill(case, timed, present)
    yield from decode.timings(present)
    yield from append.timings()


def _prefill(case: Case, schemes: list[str], present: list[Baseline]) -> Iterator[Timing]:
    q, k, v = (noise(case, seed) for seed in range(3))
    runs = {
        (ours.NAME, scheme, ours.family(scheme, case)): ours.prepare(q, k, v, case, scheme)
        for scheme in schemes
    }
    for baseline in present:
        run = baselines.bound(baseline, q, k, v, case)
        if run is not None:
            runs[baseline.name, baseline.scheme, baselines.FAMILY] = run
    functions = {}
    for who, run in runs.items():
        functions[who, "end_to_end"] = run.end_to_end
        if run.kernel is not None and run.kernel is not run.end_to_end:
            functions[who, "kernel"] = run.kernel
    times = time_gpu(functions)
    for who, run in runs.items():
        end_to_end = times[who, "end_to_end"]
        kernel = times.get((who, "kernel"), end_to_end if run.kernel else None)
        implementation, scheme, family = who
        yield Timing(
            **asdict(case),
            case="prefill",
            implementation=implementation,
            scheme=scheme,
            family=family,
            kernel_ms=kernel.ms if kernel else None,
            end_to_end_ms=end_to_end.ms,
            tops=case.operations / kernel.ms * 1e-9 if kernel else None,
        )


def _quantizers() -> Iterator[Timing]:
    import cupy

    with room_for(QUANTIZE, 2 * QUANTIZE.input_bytes) as fits:
        if not fits:
            return
        x = noise(QUANTIZE, 0)
        copy = cupy.empty_like(x)

        def quantizer(scheme: str, operand: str) -> Any:
            return lambda: cuattn.quantize(x, operand=operand, scheme=scheme)

        functions = {pair: quantizer(*pair) for pair in QUANTIZERS}
        moved = {pair: x.nbytes + _quantized_bytes(f()) for pair, f in functions.items()}
        # What a call that quantizes all three operands spends on it.
        functions["int8", "all"] = lambda: [functions["int8", operand]() for operand in "qkv"]
        moved["int8", "all"] = sum(moved["int8", operand] for operand in "qkv")
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
        )
