"""Where the time of a ring goes: python -m benchmarks.multi_gpu --only profile.

For a ring with a causal mask and one without: GPU time of each stage (packing, calls, waiting for
what is sent, merging), the time that the host takes to enqueue all of it, and what the pieces take
one by one, nothing sent or with a message beside. Each rank prints its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

import cuattn
from cuattn import distributed
from cuattn.distributed.call import Call
from cuattn.distributed.states import States

from .multi_gpu_clock import Clock, noise
from .multi_gpu_times import HEAD_DIM, HEADS, LENGTHS

__all__ = ["profiles"]

ROUNDS = 9


class Stages:
    """GPU time between what is enqueued before and behind a stage, by its name, of each call."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Any, Any]] = []
        self.found: dict[str, list[float]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time what is enqueued inside."""
        import cupy

        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        yield
        end.record()
        self.marks.append((name, begin, end))

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls are a stage."""

        def call(*args: Any, **options: Any) -> Any:
            with self.of(name):
                return function(*args, **options)

        return call

    def read(self) -> None:
        """Take the times of one call; stages of a name are numbered."""
        import cupy

        seen: dict[str, int] = {}
        for name, begin, end in self.marks:
            end.synchronize()
            number = seen[name] = seen.get(name, -1) + 1
            ms = cupy.cuda.get_elapsed_time(begin, end)
            self.found.setdefault(f"{name} {number}", []).append(ms)
        self.marks.clear()


class Waited:
    """A transfer whose waiting is a stage."""

    def __init__(self, transfer: Any, stages: Stages) -> None:
        self._transfer, self._stages = transfer, stages

    def wait(self) -> None:
        """See `cuattn.distributed.group.Transfer.wait`."""
        with self._stages.of("wait"):
            self._transfer.wait()


def profile(group: Any, clock: Clock, arrays: list[Any], options: dict[str, Any]) -> None:
    """Print the stages of a ring, and how long the host takes for it."""
    ring = partial(distributed.ring_attention, *arrays, group, check="once", **options)
    stages, host = Stages(), []
    own = {name: getattr(Call, name) for name in ("pack", "attend")} | {"merged": States.merged}
    exchange = group.exchange
    for count in range(-2, ROUNDS):
        if count == 0:
            Call.pack = stages.wrapped("pack", own["pack"])  # type: ignore[method-assign]
            Call.attend = stages.wrapped("attend", own["attend"])  # type: ignore[method-assign]
            States.merged = stages.wrapped("merge", own["merged"])  # type: ignore[method-assign]
            group.exchange = lambda *given: Waited(exchange(*given), stages)
        group.barrier()
        clock.together()
        begin = time.perf_counter()
        with stages.of("all"):
            ring()
        host.append(time.perf_counter() - begin)
        stages.read()
    Call.pack, Call.attend, States.merged = own["pack"], own["attend"], own["merged"]  # type: ignore[method-assign]
    group.exchange = exchange
    of_each = {name: times[-ROUNDS:] for name, times in stages.found.items()}
    text = ", ".join(f"{name} {np.median(times):.3f}" for name, times in of_each.items())
    print(
        f"rank {group.rank} {options}: {text} ms; host {1e3 * np.median(host):.3f} ms", flush=True
    )


def apart(group: Any, clock: Clock, arrays: list[Any], is_causal: bool) -> None:
    """Print what the pieces of a ring take by themselves, on all ranks at once."""
    import cupy

    q, k, v = arrays
    n = q.shape[2] // 2
    codes = cuattn.quantize_kv(k, v, scheme="int8-block")
    half = cuattn.quantize_kv(k[:, :, :n], v[:, :, :n], scheme="int8-block")
    attend = partial(cuattn.attention, scheme="int8-block", return_lse=True)
    parcels = [cupy.zeros(q.size, cupy.uint8) for _ in range(2)]
    to, source = (group.rank + 1) % group.size, (group.rank - 1) % group.size

    def beside(call: Callable[[], object]) -> object:
        under_way = group.send_receive(*parcels, to, source)
        call()
        return under_way.wait()

    o, lse = attend(q, *codes)
    whole = partial(attend, q, *codes, is_causal=is_causal)
    pieces: dict[str, Callable[[], object]] = {
        "quantize k, v": partial(cuattn.quantize_kv, k, v, scheme="int8-block"),
        "quantize q": partial(cuattn.quantize, q, operand="q", scheme="int8-block"),
        "own part": whole,
        "own part beside a message": lambda: beside(whole),
        "message": lambda: beside(lambda: None),
        "all rows, half of the keys": partial(attend, q, *half),
        "half of the rows, all keys": partial(attend, q[:, :, :n], *codes),
        "half of both, causal": partial(attend, q[:, :, :n], *half, is_causal=True),
        "merge of two": lambda: cuattn.merge_states([o, o], [lse, lse]),
        "all in one call": partial(cuattn.attention, q, k, v, scheme="int8-block"),
    }
    for name, call in pieces.items():
        seconds = clock.seconds(call)
        if group.rank == 0:
            print(f"{name}: {1e3 * seconds:.3f} ms", flush=True)


def profiles(group: Any) -> None:
    """Profile rings at the shortest of the sizes of `multi_gpu_times`."""
    clock = Clock(group, on_gpu=True)
    shape = 1, HEADS, LENGTHS[0], HEAD_DIM
    arrays = [noise(shape, 3 * group.rank + i, rehearse=False) for i in range(3)]
    for is_causal in (True, False):
        placement = "zigzag" if is_causal else "contiguous"
        of_ring = {"is_causal": is_causal, "placement": placement}
        for scheme in ("int8-block", "fp16"):
            profile(group, clock, arrays, {**of_ring, "scheme": scheme})
        profile(group, clock, arrays, {**of_ring, "scheme": "int8-block", "wire": "input"})
        apart(group, clock, arrays, is_causal)
    profile(group, clock, arrays, {"is_causal": True, "scheme": "int8-block", "wire": "int4"})
