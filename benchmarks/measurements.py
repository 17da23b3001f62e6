"""The two phases of the GPU check that give figures: errors against float64, and times."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

import cuattn
from cuattn.presets import resolve
from cuattn.record import Accuracy, Timing
from cuattn.reference import distributions, metrics
from cuattn.scheme import Scheme

from . import baselines, exact, ours, papers
from .baselines import BASELINES, Baseline
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

    The papers' schemes, and their cases beyond these, follow.
    """
    exact.check()
    present = _present()
    points = accuracy_points()
    supported = ours.supported_schemes(dict.fromkeys(x for some in points.values() for x in some))
    for (case, name), schemes in points.items():
        q, k, v = inputs(case, name)
        wanted = exact.attention(q, k, v, is_causal=case.is_causal).get()
        for scheme in schemes:
            if scheme in supported:
                o = ours.prepare(q, k, v, case, scheme).end_to_end()
                yield _accuracy(o, wanted, case, name, scheme.name, ours.family(scheme, case))
        for baseline in present if case in ACCURACY else ():
            run = _bind(baseline, q, k, v, case)
            if run is not None:
                o = run.end_to_end()
                yield _accuracy(o, wanted, case, name, baseline.name, baselines.FAMILY)
        _free()


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
    """Yield the times of attention, of the quantizers and of the host."""
    schemes, present = list(ours.supported_schemes(SCHEMES)), _present()
    yield from _host(schemes)
    yield from _quantizers()
    for case in PREFILL:
        with _room_for(case, 14 * case.input_bytes) as fits:
            if fits:
                timed = schemes if case in EVERY_SCHEME else [x for x in schemes if x in CORE]
                yield from _prefill(case, timed, present)


def noise(case: Case, seed: int) -> Any:
    """Return float16 normal noise [B, H, N, D] for one operand; the batch repeats one element."""
    import cupy

    sizes = (1, case.num_q_heads, case.seqlen_q, case.head_dim)
    drawn = np.random.default_rng(seed).standard_normal(sizes, dtype=np.float32)
    return cupy.tile(cupy.asarray(drawn).astype(cupy.float16), (case.batch, 1, 1, 1))


def inputs(case: Case, distribution: str = "normal") -> tuple[Any, Any, Any]:
    """Return float16 CuPy arrays q, k, v of a named distribution."""
    import cupy

    sizes = asdict(case)
    del sizes["is_causal"]
    drawn = distributions.make(distribution, **sizes)
    q, k, v = (cupy.asarray(x.astype(np.float16)) for x in drawn)
    return q, k, v


def _prefill(case: Case, schemes: list[str], present: list[Baseline]) -> Iterator[Timing]:
    q, k, v = (noise(case, seed) for seed in range(3))
    runs = {
        (ours.NAME, scheme, ours.family(scheme, case)): ours.prepare(q, k, v, case, scheme)
        for scheme in schemes
    }
    for baseline in present:
        run = _bind(baseline, q, k, v, case)
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

    with _room_for(QUANTIZE, 2 * QUANTIZE.input_bytes) as fits:
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


def _accuracy(o: Any, wanted: Any, case: Case, name: str, scheme: str, family: str) -> Accuracy:
    import cupy

    got = cupy.from_dlpack(o).astype(cupy.float64).get()
    return Accuracy(
        **asdict(case),
        scheme=scheme,
        family=family,
        distribution=name,
        metrics=dict(metrics.metrics(got, wanted)),
    )


def _present() -> list[Baseline]:
    missing = {baseline.name: baseline.unavailable() for baseline in BASELINES}
    for name, reason in missing.items():
        if reason is not None:
            print(f"baseline {name} left out: {reason}", flush=True)
    return [baseline for baseline in BASELINES if missing[baseline.name] is None]


def _bind(baseline: Baseline, q: Any, k: Any, v: Any, case: Case) -> ours.Run | None:
    if case.is_causal and not baseline.causal:
        return None
    try:
        return baseline.bind(q, k, v, case)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"baseline {baseline.name}, {case}: {reason}", flush=True)
        return None


@contextmanager
def _room_for(case: Case, needed: int) -> Iterator[bool]:
    """Say whether the GPU has the memory for a case, and give back afterwards what it took."""
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < needed:
        print(f"{case} left out: {needed >> 30} GiB needed, {free >> 30} free", flush=True)
    yield free >= needed
    _free()


def _free() -> None:
    """Hand back what the allocators of CuPy and PyTorch hold without using it."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
