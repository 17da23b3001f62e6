"""Time on the GPU's own clock, from a cold L2 cache or of calls in a row; and time of the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from ..reference.arrays import Progress

# The flush also keeps the GPU busy while the host submits what is timed: 1 GiB is 0.2 to 1 ms.
FLUSH_BYTES = 1 << 30
# Sums over the lines read, a thread block each: CuPy makes a single sum in one block.
SUMS = 4096

ROUNDS, WARMUP = 30, 5

# Calls in a row take so many seconds in all; clocks have settled after the first of them.
SUSTAINED_S, SETTLE_S = 0.3, 0.1
# Parts of the rest that are timed apart, to see how much they differ.
PARTS = 8

Name = TypeVar("Name", bound=Hashable)


class Stamp:
    """A point on the current stream's time line; the difference of two is seconds of GPU time."""

    def __init__(self) -> None:
        import cupy

        self.event = cupy.cuda.Event()
        self.event.record()

    def __sub__(self, earlier: Stamp) -> float:
        import cupy

        self.event.synchronize()
        return float(cupy.cuda.get_elapsed_time(earlier.event, self.event)) * 1e-3


class ColdL2:
    """Called before a measurement, fills the L2 cache with lines of no use to it.

    Parameters
    ----------
    nbytes : int, optional
        Of memory that is written; by default as much as keeps the GPU busy if written once.
    times : int
        How often it is written.
    """

    def __init__(self, nbytes: int | None = None, times: int = 1) -> None:
        import cupy

        self._junk = cupy.empty(_junk_bytes() if nbytes is None else nbytes, dtype=cupy.uint8)
        self._times = times

    def __call__(self) -> None:
        """Enqueue the filling."""
        import cupy

        stream = cupy.cuda.get_current_stream()
        for _ in range(self._times):
            self._junk.data.memset_async(0, self._junk.nbytes, stream)


class CleanL2:
    """As `ColdL2`, but with lines that were read, as weights are between two decoding steps.

    Behind a memset every line that a kernel fetches first drives one out to memory that was
    written: reading 142 MB takes an H200 43.3 us then, and 34.8 us behind lines that were read.

    Parameters
    ----------
    times : int
        How often it is filled.
    """

    def __init__(self, times: int = 1) -> None:
        import cupy

        self._times = times

        words = _junk_bytes() // (SUMS * 8)
        self._junk = cupy.empty((SUMS, words), dtype=cupy.uint64)
        self._sums = cupy.empty(SUMS, dtype=cupy.uint64)
        self._read = cupy.ReductionKernel("T x", "T y", "x", "a ^ b", "y = a", "0", "read_junk")

    def __call__(self) -> None:
        """Enqueue the reading."""
        for _ in range(self._times):
            self._read(self._junk, out=self._sums, axis=1)


def _junk_bytes() -> int:
    import cupy

    _, total = cupy.cuda.runtime.memGetInfo()
    return int(min(FLUSH_BYTES, total // 16))


@dataclass(frozen=True)
class Median:
    """Median of the rounds and their inter-quartile range, in milliseconds."""

    ms: float
    iqr_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Median:
        """Summarize the rounds of one function."""
        low, middle, high = np.percentile(seconds, (25, 50, 75)) * 1e3
        return cls(ms=float(middle), iqr_ms=float(high - low))


def time_gpu(
    functions: Mapping[Name, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    flush: Callable[[], Callable[[], None]] = ColdL2,
    progress: Progress | None = None,
    order_seed: int | None = None,
) -> dict[Name, Median]:
    """Time functions that enqueue work on the current stream, each from a cold L2 cache.

    A round runs every function once, so that clocks that drift and heat that builds up meet all of
    them alike. Each round starts with the next one, or, with `order_seed`, has them in an order of
    its own at random, so that none has the same neighbour again and again. Before each, what
    `flush` makes fills the cache.
    `progress` is called between rounds.
    """
    names = list(functions)
    if not names:
        return {}
    fill_l2 = flush()
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    rng = None if order_seed is None else np.random.default_rng(order_seed)
    for count in range(-warmup, rounds):
        first = count % len(names)
        order = [*range(first, len(names)), *range(first)]
        if rng is not None:
            order = rng.permutation(len(names)).tolist()
        stamps = []
        for name in (names[i] for i in order):
            fill_l2()
            start = Stamp()
            functions[name]()
            stamps.append((name, start, Stamp()))
        if count >= 0:
            for name, start, end in stamps:
                seconds[name].append(end - start)
            if progress is not None:
                progress(count + 1, rounds)
    return {name: Median.of(values) for name, values in seconds.items()}


def time_sustained(
    functions: Mapping[Name, Callable[[], object]],
    *,
    seconds: float = SUSTAINED_S,
    settle: float = SETTLE_S,
    neutral: Callable[[], Callable[[], None]] = ColdL2,
    order_seed: int = 0,
) -> dict[Name, Median]:
    """Time functions that enqueue work on the current stream, many calls of each in a row.

    Parameters
    ----------
    functions : mapping of name to callable
        Taken one after the other, in a random order.
    seconds : float
        Of GPU time that the calls of each take in all.
    settle : float
        Of these, what goes by before times count: clocks sink under load until they are steady.
    neutral : callable
        Makes what runs before each function, so that it does not begin with the clocks of another.
    order_seed : int
        Of the order.

    Returns
    -------
    dict of name to Median
        Of one call: the median over `PARTS` stretches of the calls.
    """
    names = list(functions)
    rest = neutral()
    found: dict[Name, Median] = {}
    for i in np.random.default_rng(order_seed).permutation(len(names)).tolist():
        function = functions[names[i]]
        rest()
        function()
        start = Stamp()
        function()
        single = max(Stamp() - start, 1e-7)
        for _ in range(int(settle / single)):
            function()
        calls = max(1, round((seconds - settle) / single / PARTS))
        stamps = [Stamp()]
        for _ in range(PARTS):
            for _ in range(calls):
                function()
            stamps.append(Stamp())
        stretches = [(end - start) / calls for start, end in pairwise(stamps)]
        found[names[i]] = Median.of(stretches)
    return {name: found[name] for name in names}


def time_host(function: Callable[[], object], *, calls: int = 50, rounds: int = 20) -> Median:
    """Time how long one call keeps the host: the mean of `calls` in a row, nothing waited for."""
    import cupy

    seconds = []
    for count in range(-2, rounds):
        cupy.cuda.get_current_stream().synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        if count >= 0:
            seconds.append((time.perf_counter() - start) / calls)
    cupy.cuda.get_current_stream().synchronize()
    return Median.of(seconds)


class Graph:
    """Calls captured on CuPy's current stream, which is not the default one.

    Parameters
    ----------
    function : callable
        Called once before, which loads its kernels.
    calls : int
        How many of it are captured.
    """

    def __init__(self, function: Callable[[], object], calls: int = 1) -> None:
        import cupy

        self._stream = cupy.cuda.get_current_stream()
        self._pool = cupy.cuda.MemoryPool()  # its own: nobody else is given its memory
        with cupy.cuda.using_allocator(self._pool.malloc):
            function()
            self._stream.begin_capture()
            for _ in range(calls):
                function()
            self._graph = self._stream.end_capture()

    def launch(self) -> None:
        """Enqueue the calls."""
        self._graph.launch(self._stream)
