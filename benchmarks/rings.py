"""Times of rings whose ranks are streams of one GPU, beside one call, and of merging states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import cuattn
from cuattn.bench import ours
from cuattn.bench.cases import Case
from cuattn.bench.inputs import noise, token_noise
from cuattn.bench.left_out import GIB, LeftOut, in_a_line, room_for
from cuattn.choice.timing import ColdL2, Median, time_gpu
from cuattn.distributed import ring_attention, run_virtual, shard
from cuattn.distributed.placement import Placement
from cuattn.errors import CuattnError
from cuattn.records.rows import Timing

__all__ = ["MERGE", "RINGS", "Ring", "merge_bytes", "timings"]


class Ring(NamedTuple):
    """A ring that is timed.

    Attributes
    ----------
    ranks : int
        One is a call of `cuattn.attention`.
    placement : str
    wire : str or None
    scheme : str
    is_causal : bool
    """

    ranks: int
    placement: Placement
    wire: Any
    scheme: str
    is_causal: bool


TOKENS, HEADS, HEAD_DIM = 65536, 32, 128
RINGS = (
    Ring(1, "contiguous", None, "int8-block", False),
    Ring(4, "contiguous", None, "int8-block", False),
    Ring(4, "contiguous", "input", "int8-block", False),
    Ring(1, "contiguous", None, "int8-block", True),
    Ring(4, "zigzag", None, "int8-block", True),
    Ring(4, "striped", None, "int8-block", True),
    Ring(1, "contiguous", None, "int8-token", True),
    Ring(4, "zigzag", "int4", "int8-block", True),
)
ROUNDS, WARMUP, REST = 8, 2, 40

# Four states of a ring's rank: 1 GiB of them.
MERGE = Case.square(1, HEADS, 32768, HEAD_DIM, False)
PARTS = 4


def timings(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of `RINGS`, of merging, and of a copy beside that.

    Parameters
    ----------
    left_out : callable
        Told about what cannot be measured here.
    """
    for is_causal in (False, True):
        case = Case.square(1, HEADS, TOKENS, HEAD_DIM, is_causal)
        with room_for(case, 12 * GIB, left_out) as fits:
            if fits:
                yield from _rings(case, [x for x in RINGS if x.is_causal == is_causal], left_out)
    with room_for(MERGE, 3 * GIB, left_out) as fits:
        if fits:
            yield from _merging()


def _rings(case: Case, rings: list[Ring], left_out: LeftOut) -> Iterator[Timing]:
    k, v = (token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))
    arrays = noise(case, 0), k, v
    functions: dict[Ring, Callable[[], object]] = {}
    for ring in rings:
        call = _call(arrays, ring)
        try:
            call()
        except (CuattnError, RuntimeError, MemoryError) as error:
            left_out(f"ring of {ring.ranks}, {ring.scheme}, {case}", in_a_line(error))
        else:
            functions[ring] = call
    times = time_gpu(
        functions,
        rounds=ROUNDS,
        warmup=WARMUP,
        flush=partial(ColdL2, None, REST),
        order_seed=0,
    )
    for ring, time in times.items():
        yield row_of(case, ring, time)


def _call(arrays: tuple[Any, Any, Any], ring: Ring) -> Callable[[], object]:
    options = {"is_causal": ring.is_causal, "scheme": ring.scheme}
    if ring.ranks == 1:
        return partial(cuattn.attention, *arrays, **options)
    options |= {"placement": ring.placement, "wire": ring.wire}
    shards = [
        [shard(x, ring.ranks, rank, ring.placement) for x in arrays] for rank in range(ring.ranks)
    ]
    work = partial(_work, shards=shards, options=options)
    return lambda: run_virtual(ring.ranks, work)


def _work(group: Any, shards: list[list[Any]], options: dict[str, Any]) -> Any:
    return ring_attention(*shards[group.rank], group, **options)


def row_of(case: Case, ring: Ring, time: Median, kind: str = "ring-virtual") -> Timing:
    """Return the row of a ring's time."""
    return Timing(
        **asdict(case),
        case=kind,
        implementation=ours.NAME,
        scheme=ring.scheme,
        family=ours.family(ring.scheme, case),
        end_to_end_ms=time.ms,
        end_to_end_iqr_ms=time.iqr_ms,
        tops=case.operations / time.ms * 1e-9,
        ranks=ring.ranks,
        placement=ring.placement,
        wire=ring.wire,
    )


def merge_bytes(case: Case, parts: int) -> int:
    """Return what merging reads and writes of float16 results."""
    rows = case.batch * case.num_q_heads * case.seqlen_q
    return (parts + 1) * rows * (2 * case.head_dim + 4)


def _merging() -> Iterator[Timing]:
    import cupy

    o = [noise(MERGE, seed) for seed in range(PARTS)]
    lse = [cupy.random.default_rng(i).random(x.shape[:3], cupy.float32) for i, x in enumerate(o)]
    out, copied = cupy.empty_like(o[0]), cupy.stack(o)
    copy = cupy.empty_like(copied)
    functions: dict[str, Callable[[], object]] = {
        "merge": lambda: cuattn.merge_states(o, lse, out=out),
        "copy-merge": lambda: copy.data.copy_from_device_async(copied.data, copied.nbytes),
    }
    moved = {"merge": merge_bytes(MERGE, PARTS), "copy-merge": 2 * copied.nbytes}
    for name, time in time_gpu(functions, order_seed=0).items():
        is_ours = name == "merge"
        yield Timing(
            **asdict(MERGE),
            case=name,
            implementation=ours.NAME if is_ours else "cudaMemcpyAsync",
            scheme="",
            family="merge_states" if is_ours else "baseline",
            kernel_ms=time.ms,
            kernel_iqr_ms=time.iqr_ms,
            gbps=moved[name] / time.ms * 1e-6,
            ranks=PARTS if is_ours else None,
        )
