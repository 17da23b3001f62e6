"""Times of rings and their like over several GPUs, on one clock: the slowest rank's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import cuattn
from cuattn import distributed
from cuattn.bench import ours
from cuattn.bench.cases import Case
from cuattn.distributed.call import tokens_of
from cuattn.distributed.parcel import Carrier
from cuattn.distributed.rates import shard_bytes
from cuattn.presets import resolve
from cuattn.records.rows import Timing

from . import multi_gpu_decode
from .multi_gpu_clock import Clock, library, noise

__all__ = ["timings"]

HEADS, HEAD_DIM = 32, 128
# Tokens on each GPU.
LENGTHS = (16384, 32768, 65536, 131072)
# Of all ranks together, once.
LONGEST = 1048576
# Bytes of messages that tell how fast links are, and how many in a row.
MESSAGES = (1 << 16, 1 << 20, 1 << 24, 1 << 27)
IN_A_ROW = 5


class Way(NamedTuple):
    """What is timed: a function, and its options."""

    kind: str
    scheme: str
    is_causal: bool
    wire: Any


WAYS = [
    *(
        Way("ring", scheme, causal, None)
        for scheme in ("int8-block", "fp16")
        for causal in (True, False)
    ),
    Way("ring", "int8-block", True, "input"),
    Way("ring", "int8-block", True, "int4"),
    Way("ulysses", "int8-block", True, None),
    Way("all-gather", "int8-block", True, None),
]


def timings(group: Any, within: float, rehearse: bool) -> Iterator[Timing]:
    """Yield rows until so many seconds are over; ranks agree on when that is.

    Parameters
    ----------
    group : Group
    within : float
        Seconds.
    rehearse : bool
        On arrays of the host, small ones.
    """
    begun = time.monotonic()
    clock = Clock(group, not rehearse)

    def is_over(share: float) -> bool:
        own = time.monotonic() - begun > share * within
        return any(json.loads(x) for x in group.gather_bytes(json.dumps(own).encode()))

    yield from _links(group, clock, rehearse)
    yield from multi_gpu_decode.timings(group, clock, rehearse, lambda: is_over(0.3))
    for tokens in (64,) if rehearse else LENGTHS:
        if is_over(0.75):
            break
        yield from _of_length(group, clock, tokens, rehearse, lambda: is_over(0.75))
    if not is_over(0.8):
        yield from _longest(group, clock, rehearse)


def _links(group: Any, clock: Clock, rehearse: bool) -> Iterator[Timing]:
    """Yield how fast each rank sends to the next one while it receives as much."""
    xp = library(rehearse)
    for size in (256,) if rehearse else MESSAGES:
        send, receive = (xp.zeros(size, "uint8") for _ in range(2))
        to, source = (group.rank + 1) % group.size, (group.rank - 1) % group.size

        def call(*given: Any) -> None:
            group.send_receive(*given).wait()

        seconds = clock.seconds(partial(call, send, receive, to, source), IN_A_ROW)
        yield Timing(
            **asdict(Case.square(1, 1, 1, HEAD_DIM, False)),
            case="link",
            implementation=type(group).__name__,
            scheme="",
            family="baseline",
            end_to_end_ms=1e3 * seconds,
            gbps=size / seconds * 1e-9,
            ranks=group.size,
            bytes_sent=size,
        )
        if group.rank == 0:
            print(
                f"{size} bytes: {1e6 * seconds:.1f} us, {size / seconds * 1e-9:.1f} GB/s",
                flush=True,
            )


def _of_length(
    group: Any, clock: Clock, own: int, rehearse: bool, is_over: Callable[[], bool]
) -> Iterator[Timing]:
    arrays = [noise((1, HEADS, own, HEAD_DIM), 3 * group.rank + i, rehearse) for i in range(3)]
    alone: dict[tuple[str, bool], float] = {}
    for way in WAYS:
        if is_over():
            return
        if way.kind == "ulysses" and HEADS % group.size:
            continue
        key = way.scheme, way.is_causal
        if key not in alone:
            alone[key] = _alone(arrays, way, clock, group.size)
            yield _row("ring-one", way, own, group, alone[key], rehearse)
        seconds = clock.seconds(partial(_call, way, arrays, group))
        sent, hidden = _sent(way, own, group), None
        if way.kind == "ring":
            computing = clock.seconds(partial(_call, way, arrays, distributed.MutedGroup(group)))
            sending = clock.seconds(_sending(way, own, group, rehearse))
            hidden = 1.0 - max(0.0, seconds - computing) / max(sending, 1e-9)
        yield _row(way.kind, way, own, group, seconds, rehearse, sent=sent, hidden=hidden)
        if group.rank == 0:
            share = alone[key] / seconds
            print(
                f"{way} {own} tokens a rank: {1e3 * seconds:.3f} ms, efficiency {share:.3f}, "
                f"hidden {hidden}",
                flush=True,
            )


def _longest(group: Any, clock: Clock, rehearse: bool) -> Iterator[Timing]:
    """Yield the time of one call over a million tokens, with codes of 8 and of 4 bits."""
    own = (256 if rehearse else LONGEST) // group.size
    arrays = [noise((1, HEADS, own, HEAD_DIM), 3 * group.rank + i, rehearse) for i in range(3)]
    for way in (Way("ring", "int8-block", True, None), Way("ring", "int8-block", True, "int4")):
        seconds = clock.once(partial(_call, way, arrays, group))
        yield _row(way.kind, way, own, group, seconds, rehearse, sent=_sent(way, own, group))
        if group.rank == 0:
            print(f"{way} {own} tokens a rank: {1e3 * seconds:.0f} ms", flush=True)


def _alone(arrays: list[Any], way: Way, clock: Clock, size: int) -> float:
    """Return seconds of one GPU for a rank's share of the work: as many pairs in one call.

    A rank has 1/P of the rows and all keys; with P times as few rows, K and V are those of P ranks.
    Keys that repeat cost the same, and a causal mask leaves half of the pairs: half of the keys.
    """
    xp = library(type(arrays[0]).__module__ == "numpy")
    q, k, v = arrays
    if way.is_causal:
        # As many pairs under a mask: sqrt(P) times as many rows, each of the same heads.
        heads = max(1, round(HEADS / size))
        q, k, v = (xp.concatenate([x[:, :heads]] * size, axis=2) for x in arrays)
        scale = HEADS / (heads * size)
    else:
        k, v = (xp.concatenate([x] * size, axis=2) for x in (k, v))
        scale = 1.0
    options = {"is_causal": way.is_causal, "scheme": way.scheme}
    return scale * clock.seconds(lambda: cuattn.attention(q, k, v, **options))


def _call(way: Way, arrays: list[Any], group: Any) -> Any:
    options: dict[str, Any] = {"is_causal": way.is_causal, "scheme": way.scheme, "wire": way.wire}
    options |= {"check": "once"}
    if way.kind == "ulysses":
        return distributed.ulysses_attention(*arrays, group, **options)
    call = {"ring": distributed.ring_attention, "all-gather": distributed.all_gather_attention}
    return call[way.kind](*arrays, group, placement=_placement(way), **options)


def _placement(way: Way) -> Any:
    return "contiguous" if way.kind == "ulysses" else "zigzag" if way.is_causal else "contiguous"


def _parcel(way: Way, own: int, group: Any) -> int:
    """Return the bytes of a rank's keys and values."""
    carrier = Carrier(resolve(way.scheme), way.wire, 1, HEADS, HEAD_DIM, HEAD_DIM, "float16", "HND")
    runs = tokens_of([own] * group.size, _placement(way), name="k")[0]
    return shard_bytes(carrier, runs, way.is_causal)


def _sent(way: Way, own: int, group: Any) -> int:
    parcel = _parcel(way, own, group)
    if way.kind != "ulysses":
        return (group.size - 1) * parcel
    rows = 2 * HEADS * own * HEAD_DIM
    return (2 * rows + parcel) * (group.size - 1) // group.size


def _sending(way: Way, own: int, group: Any, rehearse: bool) -> Callable[[], None]:
    """Return a call that sends what a ring sends, and does nothing else."""
    xp = library(rehearse)
    send, receive = (xp.zeros(_parcel(way, own, group), "uint8") for _ in range(2))
    to, source = (group.rank + 1) % group.size, (group.rank - 1) % group.size

    def call() -> None:
        for _ in range(group.size - 1):
            group.send_receive(send, receive, to, source).wait()

    return call


def _row(
    kind: str,
    way: Way,
    own: int,
    group: Any,
    seconds: float,
    rehearse: bool,
    *,
    sent: int | None = None,
    hidden: float | None = None,
) -> Timing:
    case = Case.square(1, HEADS, own * group.size, HEAD_DIM, way.is_causal)
    return Timing(
        **asdict(case),
        case=kind,
        implementation=ours.NAME,
        scheme=way.scheme,
        family="emulation" if rehearse else ours.family(way.scheme, case),
        end_to_end_ms=1e3 * seconds,
        tops=case.operations / group.size / seconds * 1e-12,
        ranks=group.size,
        placement=_placement(way),
        wire=way.wire,
        bytes_sent=sent,
        hidden=hidden,
    )
