"""Decoding in the record: its shapes, and besides these: pages, ragged lengths, a short one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import numpy as np

from cuattn.bench import caches
from cuattn.bench.baselines.registry import Baseline
from cuattn.bench.cases import DECODE, decoding
from cuattn.bench.decode import (
    Call,
    attend,
    bytes_needed,
    cached,
    copy,
    float16,
    timed,
)
from cuattn.bench.decode import (
    timings as timings_of,
)
from cuattn.bench.inputs import noise
from cuattn.bench.left_out import LeftOut, room_for
from cuattn.choice.timing import Graph, Median, time_host
from cuattn.records.record import Timing

# Half the codes beside as many scales.
NARROW = decoding(16, 8, 8192, head_dim=64)
PAGED, PAGE_SIZE = decoding(16, 8, 8192), 16
# Nothing to share between the multiprocessors: what a call costs at least.
SHORT = decoding(1, 8, 1024)
# As lengths of sequences are that did not begin together.
RAGGED_LENGTHS = [int(x) for x in np.random.default_rng(0).integers(1, 32769, 64)]
RAGGED = decoding(64, 8, round(sum(RAGGED_LENGTHS) / 64))


def timings(present: list[Baseline], left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of all cases, with those baselines that read float16."""
    for case in (*DECODE, NARROW):
        with room_for(case, bytes_needed(case), left_out) as fits:
            if fits:
                of_case = _paged if case == PAGED else partial(timings_of, case)
                yield from of_case(present, left_out)
    with room_for(RAGGED, 4 * RAGGED.input_bytes, left_out) as fits:
        if fits:
            yield from timed(RAGGED, _ragged())
    yield from _short()


def _paged(present: list[Baseline], left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of pages in turns with those of caches in one piece."""
    q = noise(PAGED, 0)
    lengths = [PAGED.seqlen_kv] * PAGED.batch
    pages = [
        attend("decode-paged", x, PAGED, q, caches.filled(PAGED, x, page_size=PAGE_SIZE), lengths)
        for x in caches.SCHEMES
    ]
    yield from timed(PAGED, [*cached(PAGED), *pages, *float16(PAGED, present, left_out), copy()])


def _ragged() -> Iterator[Call]:
    q = noise(RAGGED, 0)
    even = [RAGGED.seqlen_kv] * RAGGED.batch
    for scheme in caches.SCHEMES:
        for name, lengths in (("decode-ragged", RAGGED_LENGTHS), ("decode-even", even)):
            cache = caches.filled(RAGGED, scheme, lengths=lengths)
            yield attend(name, scheme, RAGGED, q, cache, lengths)


def _short() -> Iterator[Timing]:
    """Yield times of the GPU, of the host, and of the host that launches a graph with the call."""
    q = noise(SHORT, 0)
    calls = [
        attend("decode-short", x, SHORT, q, caches.filled(SHORT, x), [SHORT.seqlen_kv])
        for x in caches.SCHEMES
    ]
    yield from timed(SHORT, calls)
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
        end_to_end_iqr_ms=time.iqr_ms,
    )
