"""What each process of `benchmarks.multi_gpu` does: python -m benchmarks.multi_gpu_ranks PART FILE.

Rank 0 writes what it found to FILE, and to a file beside it what did not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cuattn import distributed
from cuattn.common.typed_json import write
from cuattn.errors import CuattnError, DistributedError
from cuattn.records.rows import Timing
from cuattn.reference import exact

from . import context_parallel
from .multi_gpu_profile import profiles
from .multi_gpu_times import timings

PARTS = ("check", "torch", "death", "times", "beside", "profile")
# Of the check: ways, and what of their options. Chunks of 2, 4 and 8 ranks are whole blocks of 128,
# but for the last one.
TOKENS, HEADS, KV_HEADS, HEAD_DIM = 6143, 8, 8, 128
SMALL = 203
CHECKS: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("ring", placement, {"is_causal": True})
        for placement in ("zigzag", "contiguous", "striped")
    ),
    ("ring", "zigzag", {"scheme": "int8-block"}),
    ("ring", "zigzag", {"is_causal": True, "scheme": "fp16"}),
    ("ring", "zigzag", {"is_causal": True, "scheme": "int8-token"}),
    ("ring", "zigzag", {"is_causal": True, "wire": "int4"}),
    ("ring", "zigzag", {"is_causal": True, "wire": "input"}),
    ("ring", "contiguous", {"is_causal": True, "window_size": (500, -1)}),
    ("all-gather", "zigzag", {"is_causal": True}),
    ("ulysses", "contiguous", {"is_causal": True}),
    ("usp", "contiguous", {"is_causal": True}),
]
# Of float16 inputs: what no way may be further away from float64 by, and with 4 bits.
MOST, MOST_OF_FOUR_BITS = 0.03, 0.25


class Ranks:
    """What a process knows of itself among the others.

    Attributes
    ----------
    group : Group
    xp : module
        cupy, or numpy in a rehearsal.
    tokens : int
        Of the check.
    """

    def __init__(self, transport: Any, rehearse: bool, timeout: float) -> None:
        self.group = distributed.from_environment(transport, timeout=timeout)
        self.xp: Any = np
        if not rehearse:
            import cupy

            self.xp = cupy
        self.tokens = SMALL if rehearse else TOKENS
        self.failures: list[str] = []

    def inputs(self) -> list[Any]:
        """Return q, k and v of the check, on every rank the same."""
        rng = np.random.default_rng(0)
        shapes = [(heads, self.tokens) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        return [
            self.xp.asarray(rng.standard_normal((1, *shape, HEAD_DIM), np.float32), np.float16)
            for shape in shapes
        ]

    def gather(self, data: bytes) -> list[bytes]:
        """Gather more bytes than the group is made for, piece by piece."""
        size, pieces = 4096, []
        longest = max(int(n) for n in self.group.gather_bytes(str(len(data)).encode()))
        for first in range(0, longest, size):
            pieces.append(self.group.gather_bytes(data[first : first + size]))
        return [b"".join(of_rank) for of_rank in zip(*pieces, strict=True)]

    def on_host(self, x: Any) -> Any:
        """Return an array in host memory."""
        return np.ascontiguousarray(x if self.xp is np else x.get())

    def digest(self, x: Any) -> bytes:
        """Return what tells arrays of different bits apart."""
        return hashlib.sha256(self.on_host(x).tobytes()).digest()


def attend(way: str, placement: Any, arrays: list[Any], group: Any, options: dict[str, Any]) -> Any:
    """Return this rank's part of the result."""
    if way == "usp":
        size = 2 if group.size % 2 == 0 else 1
        inner, outer = distributed.nodes(group, size)
        own = [
            distributed.shard(
                distributed.shard(x, outer.size, outer.rank, placement),
                *(inner.size, inner.rank, "contiguous"),
            )
            for x in arrays
        ]
        return distributed.usp_attention(*own, inner, outer, placement=placement, **options)
    own = [distributed.shard(x, group.size, group.rank, placement) for x in arrays]
    if way == "ulysses":
        return distributed.ulysses_attention(*own, group, **options)
    call = {"ring": distributed.ring_attention, "all-gather": distributed.all_gather_attention}
    return call[way](*own, group, placement=placement, **options)


def check(ranks: Ranks) -> None:
    """Compare every way with ranks that are streams of this GPU, and rows of it with float64."""
    arrays, group = ranks.inputs(), ranks.group
    for way, placement, options in CHECKS:
        name = f"{way}, {placement}, {options}"
        o = attend(way, placement, arrays, group, options)

        work = partial(_virtually, (way, placement, options), arrays)
        same = distributed.run_virtual(group.size, work)[group.rank]
        if ranks.digest(o) != ranks.digest(same):
            ranks.failures.append(f"{name}: not the bits of virtual ranks on rank {group.rank}")
        again = attend(way, placement, arrays, group, options)
        if ranks.digest(o) != ranks.digest(again):
            ranks.failures.append(f"{name}: not the same twice on rank {group.rank}")
        error = _error(ranks, arrays, o, way, placement, options)
        most = MOST_OF_FOUR_BITS if options.get("wire") == "int4" else MOST
        if not error < most:
            ranks.failures.append(f"{name}: error {error:.3f} on rank {group.rank}")
    _check_cache(ranks, arrays)
    _check_graph(ranks, arrays)


def _virtually(one: tuple[str, Any, dict[str, Any]], arrays: list[Any], group: Any) -> Any:
    way, placement, options = one
    return attend(way, placement, arrays, group, options)


def _error(
    ranks: Ranks, arrays: list[Any], o: Any, way: str, placement: Any, options: dict[str, Any]
) -> float:
    """Return the relative L1 error of a few rows of this rank."""
    group = ranks.group
    if way == "usp":
        placement = "contiguous"
    own = distributed.positions(ranks.tokens, group.size, group.rank, placement)
    if way == "usp" and len(own) != o.shape[2]:
        return 0.0  # nodes that divide otherwise: the bits have been compared
    sampled = np.linspace(0, len(own) - 1, 16).astype(int)
    q, k, v = (ranks.on_host(x) for x in arrays)
    rows = own[sampled]
    ahead = np.arange(ranks.tokens)[None, :] - rows[:, None]
    seen = np.ones(ahead.shape, bool)
    if options.get("is_causal"):
        seen &= ahead <= 0
    if "window_size" in options:
        seen &= ahead >= -options["window_size"][0]
    wanted, _ = exact.attention(q[:, :, rows], k, v, attn_mask=seen)
    found = ranks.on_host(o)[:, :, sampled].astype(np.float64)
    return float(np.abs(found - wanted).sum() / np.abs(wanted).sum())


def _check_cache(ranks: Ranks, arrays: list[Any]) -> None:
    """Compare decoding over ranks with virtual ranks."""
    q, k, v = arrays

    def work(group: Any) -> Any:
        device = {"device": "cpu"} if ranks.xp is np else {}
        cache = distributed.DistributedKVCache(
            group, 1, KV_HEADS, HEAD_DIM, ranks.tokens + 1, **device
        )
        cache.append(k, v)
        return cache.attend(q[:, :, -2:])

    same = distributed.run_virtual(ranks.group.size, work)[ranks.group.rank]
    if ranks.digest(work(ranks.group)) != ranks.digest(same):
        ranks.failures.append(f"decoding: not the bits of virtual ranks on {ranks.group.rank}")


def _check_graph(ranks: Ranks, arrays: list[Any]) -> None:
    """Say whether a ring and a decoding step can be replayed; that is a finding, and no failure."""
    if ranks.xp is np:
        return
    q, k, v = arrays
    own = [distributed.shard(x, ranks.group.size, ranks.group.rank) for x in arrays]
    cache = distributed.DistributedKVCache(ranks.group, 1, KV_HEADS, HEAD_DIM, ranks.tokens)
    cache.append(k, v)
    options = {"is_causal": True, "check": "once"}
    ring = partial(distributed.ring_attention, *own, ranks.group, **options)
    for name, call in (("a ring", ring), ("decoding", partial(cache.attend, q[:, :, -1:]))):
        same = _replayed(ranks, call)
        if ranks.group.rank == 0:
            print(f"{name} replayed from a CUDA graph: {'the same' if same else 'no'}", flush=True)


def _replayed(ranks: Ranks, call: Callable[[], Any]) -> bool:
    cupy = ranks.xp
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    try:
        with stream, cupy.cuda.using_allocator(pool.malloc):
            wanted = call()
            stream.begin_capture()
            o = call()
            stream.end_capture().launch(stream)
        stream.synchronize()
        return bool((o == wanted).all())
    except Exception as error:
        print(f"rank {ranks.group.rank}: not captured: {error}", flush=True)
        return False


def death(ranks: Ranks) -> None:
    """Let the last rank end in the middle, and see that the others notice."""
    arrays, group = ranks.inputs(), ranks.group
    own = [distributed.shard(x, group.size, group.rank) for x in arrays]
    distributed.ring_attention(*own, group)
    if group.rank == group.size - 1:
        os._exit(0)
    begun = time.monotonic()
    try:
        # Those who still agree by themselves send to a rank that is not there.
        distributed.ring_attention(*own, group, check="once", timeout=5.0)
        distributed.ring_attention(*own, group)
        ranks.failures.append(f"rank {group.rank} has not noticed that another one is dead")
    except DistributedError as error:
        said = f"{type(error).__name__} after {time.monotonic() - begun:.1f} s"
        print(f"rank {group.rank}: {said}", flush=True)


def main() -> None:
    """Do a part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    by_torch = options.rehearse or options.part in ("torch", "beside")
    transport = "torch" if by_torch else "nccl"
    timeout = 5.0 if options.part == "death" else 100.0
    try:
        ranks = Ranks(transport, options.rehearse, timeout)
    except CuattnError as error:
        if options.part not in ("torch", "beside"):
            raise
        print(f"torch.distributed left out: {error}")
        return
    if options.part in ("check", "torch"):
        check(ranks)
    elif options.part == "death":
        death(ranks)
    elif options.part == "profile":
        profiles(ranks.group)
    else:
        of_part = timings if options.part == "times" else beside
        rows = [*of_part(ranks.group, options.seconds, options.rehearse)]
        if ranks.group.rank == 0:
            write([asdict(row) for row in rows], options.file)
    _say(ranks, options)


def beside(group: Any, within: float, rehearse: bool) -> Iterator[Timing]:
    """Yield times of what others have, until so many seconds are over."""
    begun = time.monotonic()

    def is_over() -> bool:
        own = time.monotonic() - begun > within
        return any(json.loads(x) for x in group.gather_bytes(json.dumps(own).encode()))

    if not rehearse:
        yield from context_parallel.timings(group, is_over)


def _say(ranks: Ranks, options: argparse.Namespace) -> None:
    if options.part == "death":  # who is left cannot tell each other
        every = ranks.failures
    else:
        told = ranks.gather(json.dumps(ranks.failures).encode())
        every = [line for part in told for line in json.loads(part)]
    if ranks.group.rank == 0 and every:
        options.file.with_suffix(".failures.json").write_text(json.dumps(every))
    sys.stdout.flush()
    if options.part != "death":
        ranks.group.leave()
    os._exit(0)  # NCCL, or gloo, would wait for a rank that is dead


if __name__ == "__main__":
    main()
