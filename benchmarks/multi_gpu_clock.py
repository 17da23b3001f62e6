"""Times of what all ranks do together, on one clock: the slowest rank's; and their arrays."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Clock", "graph_of", "library", "noise"]

ROUNDS, WARMUP = 7, 2
# Long ones take seconds each.
FEW = 3
LONG_S = 0.5
# GiB that are written before each call: its launches are there by then, and clocks have recovered.
REST = 12
# Bytes by which GPUs wait for each other.
TOKEN = 256


class Clock:
    """Times calls of all ranks together: of each round the slowest rank's, and the median.

    Before each call the L2 cache is filled, as in the records of one GPU, which takes longer than
    the host takes to enqueue the call; then GPUs wait for each other. Hosts that wait leave up to
    milliseconds apart, which would count as the time of whoever receives.

    Parameters
    ----------
    group : Group
    on_gpu : bool
        Or of the host, in a rehearsal.
    """

    def __init__(self, group: Any, on_gpu: bool) -> None:
        self._group, self._on_gpu = group, on_gpu
        if on_gpu:
            import cupy

            from cuattn.choice.timing import ColdL2

            self._flush = ColdL2(None, REST)
            self._tokens = cupy.zeros(group.size * TOKEN, cupy.uint8)
            self._own_token = self._tokens[group.rank * TOKEN : (group.rank + 1) * TOKEN]

    def seconds(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Return the seconds of a call, of `repeats` in a row."""
        found: list[float] = []
        rounds = ROUNDS
        for i in range(WARMUP + ROUNDS):
            slowest = self.once(call, repeats)
            if i >= WARMUP:
                found.append(slowest)
            elif slowest > LONG_S:
                rounds = FEW
            if len(found) >= rounds:
                break
        return float(np.median(found))

    def once(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Return the seconds of one round."""
        own = self._own(call, repeats)
        return max(float(x) for x in self._group.gather_bytes(str(own).encode()))

    def together(self) -> None:
        """Fill the cache, and let the current stream go on when those of all ranks do."""
        self._flush()
        self._group.all_gather_equal(self._own_token, self._tokens).wait()

    def _own(self, call: Callable[[], object], repeats: int) -> float:
        self._group.barrier()
        if not self._on_gpu:
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - start) / repeats
        import cupy

        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        cupy.cuda.get_current_stream().synchronize()
        self.together()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return 1e-3 * float(cupy.cuda.get_elapsed_time(start, end)) / repeats


def graph_of(call: Callable[[], object], repeats: int) -> Callable[[], object]:
    """Return a launch of a CUDA graph of so many calls, on the current stream: not the default."""
    from cuattn.choice.timing import Graph

    return Graph(call, repeats).launch


def library(rehearse: bool) -> Any:
    """Return NumPy in a rehearsal, else CuPy."""
    if rehearse:
        return np
    import cupy

    return cupy


def noise(shape: tuple[int, ...], seed: int, rehearse: bool) -> Any:
    """Return float16 from N(0, 1), [1, head, token, channel]."""
    xp = library(rehearse)
    rng = xp.random.default_rng(seed)
    heads = [rng.standard_normal(shape[2:], np.float32).astype(np.float16) for _ in range(shape[1])]
    return xp.stack(heads)[None]
