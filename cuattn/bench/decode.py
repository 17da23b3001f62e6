"""Times of decoding: one query of each sequence against a cache, beside a copy and float16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..choice.timing import ROUNDS, CleanL2, time_gpu
from ..records.record import Timing
from ..reference.arrays import Progress
from . import caches, ours
from .baselines import registry as baselines
from .baselines.registry import Baseline
from .cases import Case
from .inputs import noise, token_noise
from .left_out import LeftOut

KIND = "decode"
COPY_KIND = f"copy-{KIND}"
# The scheme of implementations whose K and V are float16.
FP16 = "fp16"
# Of what is copied to know the memory's speed: far beyond any cache.
COPY_BYTES = 1 << 30
COPY = "cudaMemcpyAsync"


@dataclass(frozen=True)
class Call:
    """What is timed, what it is called in the record, and the bytes that it moves."""

    case: str
    implementation: str
    scheme: str
    run: Callable[[], object]
    moved: int


def bytes_needed(case: Case) -> int:
    """Return the memory that a case takes: K and V, what makes them, the copy and the flush."""
    return 3 * case.input_bytes + 4 * COPY_BYTES


def timings(
    case: Case,
    present: Iterable[Baseline],
    left_out: LeftOut,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Iterator[Timing]:
    """Yield the times of caches of 8 and 4 bits, of baselines that read float16, and of a copy."""
    calls = [*cached(case), *float16(case, present, left_out), copy()]
    yield from timed(case, calls, rounds, progress)


def timed(
    case: Case,
    calls: Iterable[Call],
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Iterator[Timing]:
    """Time calls that take turns; `progress` is called between rounds."""
    given = list(calls)
    functions = {i: call.run for i, call in enumerate(given)}
    times = time_gpu(functions, rounds=rounds, flush=CleanL2, progress=progress)
    for i, call in enumerate(given):
        yield Timing(
            **asdict(case),
            case=call.case,
            implementation=call.implementation,
            scheme=call.scheme,
            family=caches.FAMILY if call.implementation == ours.NAME else baselines.FAMILY,
            kernel_ms=times[i].ms,
            kernel_iqr_ms=times[i].iqr_ms,
            gbps=call.moved / times[i].ms * 1e-6,
        )


def cached(case: Case) -> Iterator[Call]:
    """Yield the calls of caches in one piece."""
    q = noise(case, 0)
    lengths = [case.seqlen_kv] * case.batch
    for scheme in caches.SCHEMES:
        yield attend(KIND, scheme, case, q, caches.filled(case, scheme), lengths)


def float16(case: Case, present: Iterable[Baseline], left_out: LeftOut) -> Iterator[Call]:
    """Yield the calls of baselines with float16 K and V."""
    q = noise(case, 0)
    k, v = (token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))
    for baseline in present:
        if baseline.decodes:
            run = baselines.bound(baseline, q, k, v, case, left_out)
            if run is not None:
                moved = k.nbytes + v.nbytes
                yield Call(KIND, baseline.name, baseline.scheme, run.end_to_end, moved)


def copy() -> Call:
    """Return a copy from the GPU's memory to itself."""
    import cupy

    source, target = (cupy.empty(COPY_BYTES, cupy.uint8) for _ in range(2))

    def run() -> None:
        target.data.copy_from_device_async(source.data, COPY_BYTES)

    return Call(COPY_KIND, COPY, "", run, 2 * COPY_BYTES)


def attend(name: str, scheme: str, case: Case, q: Any, cache: Any, lengths: Sequence[int]) -> Call:
    """Return the call that attends to a cache, called once, which compiles and plans."""
    import cupy

    out = cupy.empty_like(q)

    def run() -> Any:
        return cache.attend(q, is_causal=case.is_causal, out=out)

    run()
    return Call(name, ours.NAME, scheme, run, caches.bytes_read(case, cache, lengths))
