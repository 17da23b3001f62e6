"""Times of decoding: one query of each sequence against a cache, beside a copy and float16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cuattn.record import Timing

from . import baselines, caches, ours
from .baselines import Baseline
from .cases import Case
from .gpu_memory import room_for
from .graphs import Graph
from .inputs import noise, token_noise
from .timing import CleanL2, Median, time_gpu, time_host

# Of what is copied to know the memory's speed: far beyond any cache.
COPY_BYTES = 1 << 30


def decoding(
    batch: int, num_kv_heads: int, tokens: int, num_q_heads: int = 32, head_dim: int = 128
) -> Case:
    """Return the case of one query of each sequence."""
    return Case(
        batch=batch,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        seqlen_q=1,
        seqlen_kv=tokens,
        head_dim=head_dim,
        is_causal=False,
    )


# Few long sequences, many short ones, and heads that share nothing.
CASES = (
    decoding(1, 8, 131072),
    decoding(16, 8, 8192),
    decoding(64, 8, 4096),
    decoding(1, 32, 32768),
)
# Half the codes beside as many scales.
NARROW = decoding(16, 8, 8192, head_dim=64)
PAGED, PAGE_SIZE = decoding(16, 8, 8192), 16
# Nothing to share between the multiprocessors: what a call costs at least.
SHORT = decoding(1, 8, 1024)
# As lengths of sequences are that did not begin together.
RAGGED_LENGTHS = [int(x) for x in np.random.default_rng(0).integers(1, 32769, 64)]
RAGGED = decoding(64, 8, round(sum(RAGGED_LENGTHS) / 64))


@dataclass(frozen=True)
class Call:
    """What is timed, what it is called in the record, and the bytes that it moves."""

    case: str
    implementation: str
    scheme: str
    run: Callable[[], object]
    moved: int


def timings(present: list[Baseline]) -> Iterator[Timing]:
    """Yield the times of all cases, with those baselines that read float16."""
    for case in (*CASES, NARROW):
        # Of float16 K and V: the keys, the values and what makes them; the copy and the flush.
        with room_for(case, 3 * case.input_bytes + 4 * COPY_BYTES) as fits:
            if fits:
                yield from _timed(case, [*_cached(case), *_float16(case, present), _copy()])
    with room_for(RAGGED, 4 * RAGGED.input_bytes) as fits:
        if fits:
            yield from _timed(RAGGED, _ragged())
    yield from _short()


def _timed(case: Case, calls: Iterable[Call]) -> Iterator[Timing]:
    """Time calls that take turns."""
    given = list(calls)
    times = time_gpu({i: call.run for i, call in enumerate(given)}, flush=CleanL2)
    for i, call in enumerate(given):
        yield Timing(
            **asdict(case),
            case=call.case,
            implementation=call.implementation,
            scheme=call.scheme,
            family=caches.FAMILY if call.implementation == ours.NAME else baselines.FAMILY,
            kernel_ms=times[i].ms,
            gbps=call.moved / times[i].ms * 1e-6,
        )


def _cached(case: Case) -> Iterator[Call]:
    q = noise(case, 0)
    lengths = [case.seqlen_kv] * case.batch
    for scheme in caches.SCHEMES:
        yield _attend("decode", scheme, case, q, caches.filled(case, scheme), lengths)
        if case == PAGED:
            cache = caches.filled(case, scheme, page_size=PAGE_SIZE)
            yield _attend("decode-paged", scheme, case, q, cache, lengths)


def _float16(case: Case, present: list[Baseline]) -> Iterator[Call]:
    q = noise(case, 0)
    k, v = (token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))
    for baseline in present:
        if baseline.scheme == "fp16":
            run = baselines.bound(baseline, q, k, v, case)
            if run is not None:
                moved = k.nbytes + v.nbytes
                yield Call("decode", baseline.name, "fp16", run.end_to_end, moved)


def _copy() -> Call:
    import cupy

    source, target = (cupy.empty(COPY_BYTES, cupy.uint8) for _ in range(2))

    def copy() -> None:
        target.data.copy_from_device_async(source.data, COPY_BYTES)

    return Call("copy-decode", "cudaMemcpyAsync", "", copy, 2 * COPY_BYTES)


def _ragged() -> Iterator[Call]:
    q = noise(RAGGED, 0)
    even = [RAGGED.seqlen_kv] * RAGGED.batch
    for scheme in caches.SCHEMES:
        for name, lengths in (("decode-ragged", RAGGED_LENGTHS), ("decode-even", even)):
            cache = caches.filled(RAGGED, scheme, lengths=lengths)
            yield _attend(name, scheme, RAGGED, q, cache, lengths)


def _attend(name: str, scheme: str, case: Case, q: Any, cache: Any, lengths: Sequence[int]) -> Call:
    import cupy

    out = cupy.empty_like(q)

    def attend() -> Any:
        return cache.attend(q, is_causal=case.is_causal, out=out)

    attend()  # compiles and plans
    moved = caches.bytes_read(case, cache, lengths)
    return Call(name, ours.NAME, scheme, attend, moved)


def _short() -> Iterator[Timing]:
    """Yield times of the GPU, of the host, and of the host that launches a graph with the call."""
    q = noise(SHORT, 0)
    calls = [
        _attend("decode-short", x, SHORT, q, caches.filled(SHORT, x), [SHORT.seqlen_kv])
        for x in caches.SCHEMES
    ]
    yield from _timed(SHORT, calls)
    for call in calls:
        yield _host_time("decode-host", call, time_host(call.run))
        yield _host_time("decode-graph", call, _graph_time(call))


def _graph_time(call: Call) -> Median:
    import cupy

    with cupy.cuda.Stream(non_blocking=True):
        return time_host(Graph(call.run).launch)


def _host_time(name: str, call: Call, time: Median) -> Timing:
    return Timing(
        **asdict(SHORT),
        case=name,
        implementation=call.implementation,
        scheme=call.scheme,
        family=caches.FAMILY,
        end_to_end_ms=time.ms,
    )
