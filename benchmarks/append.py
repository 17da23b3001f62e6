"""Times of appending to a cache: one token of each sequence, and prompts to empty ones.

Prompts lie in an array for each sequence, and end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import cuattn
from cuattn.bench import caches, ours
from cuattn.bench.baselines import registry as baselines
from cuattn.bench.cases import Case, decoding
from cuattn.bench.inputs import token_noise
from cuattn.bench.left_out import LeftOut, room_for
from cuattn.choice.timing import ROUNDS, WARMUP, CleanL2, Graph, Median, time_gpu
from cuattn.records.record import Timing

TOKEN = decoding(16, 8, 8192, num_q_heads=8)
PROMPT = replace(decoding(4, 8, 8192, num_q_heads=8), seqlen_q=8192)
# A graph of so many tokens: of the time of a single one, events are a good part.
IN_GRAPH, GRAPH_ROUNDS, GRAPH_WARMUP = 64, 10, 2
# What the time of an append is to be seen beside: a kernel that does nothing.
EMPTY = "empty-kernel"


def timings(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of a token, and that of a prompt with the bytes read and written."""
    for case, timed in ((TOKEN, _token), (TOKEN, _graph), (PROMPT, _prompt)):
        with room_for(case, 4 * case.input_bytes, left_out) as fits:
            if fits:
                yield from timed()


def _token() -> Iterator[Timing]:
    for name, time in _timed(_appends(ROUNDS + WARMUP)).items():
        yield _row("append", TOKEN, name, time.ms)


def _graph() -> Iterator[Timing]:
    """Yield the time of a token in a graph of `IN_GRAPH` of them, a kernel right after another."""
    import cupy

    launches = GRAPH_ROUNDS + GRAPH_WARMUP
    # Of one stream from the beginning: it does not wait for others.
    with cupy.cuda.Stream(non_blocking=True):
        appends = _appends(1 + launches * IN_GRAPH)
        graphs = {name: Graph(append, IN_GRAPH) for name, append in appends.items()}
        functions = {name: graph.launch for name, graph in graphs.items()}
        times = _timed(functions, rounds=GRAPH_ROUNDS, warmup=GRAPH_WARMUP)
    for name, time in times.items():
        yield _row("append-graph", TOKEN, name, time.ms / IN_GRAPH)


def _appends(room: int) -> dict[str, Callable[[], object]]:
    """Return calls that append a token, each to a cache with room for so many, and an empty one."""
    import cupy

    k, v = (token_noise(TOKEN, 1, seed) for seed in (3, 4))
    functions: dict[str, Callable[[], object]] = {}
    for scheme in caches.SCHEMES:
        functions[scheme] = partial(caches.filled(TOKEN, scheme, room=room).append, k, v)
    empty = cupy.RawKernel('extern "C" __global__ void empty_kernel() {}', "empty_kernel")
    functions[EMPTY] = partial(empty, (1,), (1,), ())
    return functions


def _timed(
    functions: dict[str, Callable[[], object]],
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    fillings: int = 1,
) -> dict[str, Median]:
    flush = partial(CleanL2, fillings)
    return time_gpu(functions, rounds=rounds, warmup=warmup, flush=flush)


def _prompt() -> Iterator[Timing]:
    k, v = (token_noise(PROMPT, PROMPT.seqlen_q, seed) for seed in (3, 4))
    yield from _prompts("append-prompt", k, v)
    bounds = [b * PROMPT.seqlen_q for b in range(PROMPT.batch + 1)]
    yield from _prompts("append-packed", end_to_end(k), end_to_end(v), cu_seqlens_k=bounds)


def _prompts(kind: str, k: Any, v: Any, **given: Any) -> Iterator[Timing]:
    functions: dict[str, Callable[[], object]] = {}
    moved = {}
    for scheme in caches.SCHEMES:
        cache = caches.filled(PROMPT, scheme)
        functions[scheme] = partial(_append_again, cache, k, v, **given)
        written = caches.bytes_read(PROMPT, cache, [PROMPT.seqlen_kv] * PROMPT.batch)
        moved[scheme] = k.nbytes + v.nbytes + written
    # To empty a cache and append takes the host longer than the GPU takes for one filling.
    for scheme, time in _timed(functions, fillings=8).items():
        yield _row(kind, PROMPT, scheme, time.ms, moved[scheme])


def end_to_end(x: Any) -> Any:
    """Return tokens [batch, head, token, channel] as [token of all, head, channel]."""
    import cupy

    return cupy.ascontiguousarray(x.swapaxes(1, 2)).reshape(-1, x.shape[1], x.shape[3])


def _append_again(cache: cuattn.KVCache, k: Any, v: Any, **given: Any) -> None:
    # Empty once more, so that the vectors that keys are smoothed by are made anew, too.
    cache.reset()
    cache.append(k, v, **given)


def _row(kind: str, case: Case, name: str, ms: float, moved: int | None = None) -> Timing:
    is_ours = name in caches.SCHEMES
    return Timing(
        **asdict(case),
        case=kind,
        implementation=ours.NAME if is_ours else name,
        scheme=name if is_ours else "",
        family="append" if is_ours else baselines.FAMILY,
        kernel_ms=ms,
        gbps=None if moved is None else moved / ms * 1e-6,
    )
