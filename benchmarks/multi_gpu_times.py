"""Times of rings and their like over several GPUs, on one clock: the slowest rank's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import cuattn
from cuattn import distributed
from cuattn.bench import ours
from cuattn.bench.caches import FAMILY
from cuattn.bench.cases import Case
from cuattn.distributed.call import pieces_of, tokens_of
from cuattn.distributed.parcel import Carrier
from cuattn.presets import resolve
from cuattn.records.rows import Timing

__all__ = ["timings"]

HEADS, HEAD_DIM = 32, 128
# Tokens on each GPU.
LENGTHS = (16384, 32768, 65536, 131072)
ROUNDS, WARMUP = 7, 2
# Of all ranks together, once.
LONGEST = 1048576
# Long ones take seconds each.
FEW = 3
LONG_S = 0.5

# Tokens in all of the cache that is decoded, and steps that are timed.
CACHED = (524288, 1048576)
STEPS = 30


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


class Clock:
    """Times calls of all ranks together: of each round the slowest rank's, and the median."""

    def __init__(self, group: Any, on_gpu: bool) -> None:
        self._group, self._on_gpu = group, on_gpu

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
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return 1e-3 * float(cupy.cuda.get_elapsed_time(start, end)) / repeats


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

    yield from _decoding(group, clock, rehearse, lambda: is_over(0.3))
    for tokens in (64,) if rehearse else LENGTHS:
        if is_over(0.75):
            break
        yield from _of_length(group, clock, tokens, rehearse, lambda: is_over(0.75))
    if not is_over(0.8):
        yield from _longest(group, clock, rehearse)


def _of_length(
    group: Any, clock: Clock, own: int, rehearse: bool, is_over: Callable[[], bool]
) -> Iterator[Timing]:
    arrays = [_noise((1, HEADS, own, HEAD_DIM), 3 * group.rank + i, rehearse) for i in range(3)]
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
    arrays = [_noise((1, HEADS, own, HEAD_DIM), 3 * group.rank + i, rehearse) for i in range(3)]
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
    xp = _module(arrays[0])
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
    ranks = tokens_of([own] * group.size, _placement(way), name="k")
    return sum(carrier.nbytes(piece.tokens) for piece in pieces_of(ranks, way.is_causal)[0])


def _sent(way: Way, own: int, group: Any) -> int:
    parcel = _parcel(way, own, group)
    if way.kind != "ulysses":
        return (group.size - 1) * parcel
    rows = 2 * HEADS * own * HEAD_DIM
    return (2 * rows + parcel) * (group.size - 1) // group.size


def _sending(way: Way, own: int, group: Any, rehearse: bool) -> Callable[[], None]:
    """Return a call that sends what a ring sends, and does nothing else."""
    xp = _library(rehearse)
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


def _decoding(
    group: Any, clock: Clock, rehearse: bool, is_over: Callable[[], bool]
) -> Iterator[Timing]:
    """Yield times of a step over all ranks, and of one GPU with the tokens that each has."""
    xp = _library(rehearse)
    device = {"device": "cpu"} if rehearse else {}
    for bits in (8, 4):
        for total in (256,) if rehearse else CACHED:
            if is_over():
                return
            some = min(total, 65536)
            k, v = (_noise((1, HEADS // 4, some, HEAD_DIM), i, rehearse) for i in range(2))
            q = _noise((1, HEADS, 1, HEAD_DIM), 2, rehearse)
            cache = distributed.DistributedKVCache(
                group, 1, HEADS // 4, HEAD_DIM, total, bits=bits, **device
            )
            for _ in range(total // some):
                cache.append(k, v)
            over = clock.seconds(partial(cache.attend, q), STEPS)
            alone = clock.seconds(partial(cache.local.attend, q), STEPS)
            for kind, seconds in (("decode-ranks", over), ("decode-one", alone)):
                tokens = total if kind == "decode-ranks" else int(cache.local.lengths[0])
                moved = cache.local.bytes_per_token * int(cache.local.lengths[0])
                yield Timing(
                    batch=1,
                    num_q_heads=HEADS,
                    num_kv_heads=HEADS // 4,
                    seqlen_q=1,
                    seqlen_kv=tokens,
                    head_dim=HEAD_DIM,
                    is_causal=True,
                    case=kind,
                    implementation=ours.NAME,
                    scheme=f"int{bits}",
                    family=FAMILY,
                    kernel_ms=1e3 * seconds,
                    gbps=moved / seconds * 1e-9,
                    ranks=group.size,
                )
            if group.rank == 0:
                print(
                    f"decoding {total} tokens of {bits} bits: {1e6 * over:.1f} us over ranks, "
                    f"{1e6 * alone:.1f} of each alone",
                    flush=True,
                )
            del cache, k, v
            if xp is not np:
                xp.get_default_memory_pool().free_all_blocks()


def _library(rehearse: bool) -> Any:
    if rehearse:
        return np
    import cupy

    return cupy


def _module(x: Any) -> Any:
    return _library(isinstance(x, np.ndarray))


def _noise(shape: tuple[int, ...], seed: int, rehearse: bool) -> Any:
    xp = _library(rehearse)
    rng = xp.random.default_rng(seed)
    heads = [rng.standard_normal(shape[2:], np.float32).astype(np.float16) for _ in range(shape[1])]
    return xp.stack(heads)[None]
