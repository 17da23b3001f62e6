"""Times of decoding from a cache whose tokens are spread over several GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from cuattn import distributed
from cuattn.bench import ours
from cuattn.bench.caches import FAMILY
from cuattn.records.rows import Timing

from .multi_gpu_clock import Clock, graph_of, library, noise

__all__ = ["timings"]

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
# Tokens in all of the cache that is decoded, and steps that are timed in a row.
CACHED = (524288, 1048576)
STEPS = 30


def timings(
    group: Any, clock: Clock, rehearse: bool, is_over: Callable[[], bool]
) -> Iterator[Timing]:
    """Yield times of a step over all ranks, and of one GPU with the tokens that each has.

    Parameters
    ----------
    group : Group
    clock : Clock
    rehearse : bool
    is_over : callable
        Asked on all ranks before each cache.
    """
    xp = library(rehearse)
    device = {"device": "cpu"} if rehearse else {}
    if not rehearse:
        _say_of_message(group, clock)
    for bits in (8, 4):
        for total in (256,) if rehearse else CACHED:
            if is_over():
                return
            some = min(total, 65536)
            k, v = (noise((1, KV_HEADS, some, HEAD_DIM), i, rehearse) for i in range(2))
            cache = distributed.DistributedKVCache(
                group, 1, KV_HEADS, HEAD_DIM, total, bits=bits, **device
            )
            for _ in range(total // some):
                cache.append(k, v)
            del k, v
            yield from _of_cache(group, clock, cache, bits, rehearse)
            del cache
            if xp is not np:
                xp.get_default_memory_pool().free_all_blocks()


def _say_of_message(group: Any, clock: Clock) -> None:
    """Print what gathering takes of a step, of a query's o and lse on each rank."""
    import cupy

    size = HEADS * (2 * HEAD_DIM + 4)
    every = cupy.zeros(group.size * size, cupy.uint8)
    own = every[group.rank * size : (group.rank + 1) * size]

    def call() -> None:
        group.all_gather_equal(own, every).wait()

    call()  # opens mailboxes, or finds that there are none
    cupy.cuda.get_current_stream().synchronize()
    with cupy.cuda.Stream(non_blocking=True):
        seconds = clock.seconds(graph_of(call, STEPS)) / STEPS
    if group.rank == 0:
        way = "NCCL" if getattr(group, "mailboxes", None) is None else "mailboxes"
        print(f"{size} bytes gathered by {way}: {1e6 * seconds:.1f} us", flush=True)


def _of_cache(group: Any, clock: Clock, cache: Any, bits: int, rehearse: bool) -> Iterator[Timing]:
    xp = library(rehearse)
    q = noise((1, HEADS, 1, HEAD_DIM), 2, rehearse)
    stream = nullcontext() if rehearse else xp.cuda.Stream(non_blocking=True)
    calls = {"decode-ranks": partial(cache.attend, q), "decode-one": partial(cache.local.attend, q)}
    found: dict[str, float] = {}
    if not rehearse:
        xp.cuda.get_current_stream().synchronize()
    with stream:
        found["decode-ranks-host"] = clock.seconds(calls["decode-ranks"], STEPS)
        for kind, call in calls.items():
            # As a program decodes: the host has no part in a step.
            launch = call if rehearse else graph_of(call, STEPS)
            found[kind] = clock.seconds(launch) / (1 if rehearse else STEPS)
    own = int(cache.local.lengths[0])
    for kind, seconds in found.items():
        yield Timing(
            batch=1,
            num_q_heads=HEADS,
            num_kv_heads=KV_HEADS,
            seqlen_q=1,
            seqlen_kv=own if kind == "decode-one" else int(cache.lengths[0]),
            head_dim=HEAD_DIM,
            is_causal=True,
            case=kind,
            implementation=ours.NAME,
            scheme=f"int{bits}",
            family=FAMILY,
            kernel_ms=1e3 * seconds,
            gbps=cache.local.bytes_per_token * own / seconds * 1e-9,
            ranks=group.size,
        )
    if group.rank == 0:
        of_each = ", ".join(f"{kind} {1e6 * seconds:.1f}" for kind, seconds in found.items())
        print(f"{cache.lengths[0]} tokens of {bits} bits, us: {of_each}", flush=True)
