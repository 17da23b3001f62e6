"""Times of the candidates of `scheme="auto"`, from which a GPU's table is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import cuattn

from ..arrays.device import current_device
from ..auto.table import CANDIDATES, KIND, SpeedTable
from ..choice.timing import ColdL2, time_gpu
from ..records.digest import ATTENTION, digest
from ..records.record import Timing
from ..reference.arrays import Progress
from . import ours
from .cases import Case
from .inputs import noise, token_noise
from .left_out import LeftOut, room_for
from .prefill import REST

__all__ = ["CASES", "ROUNDS", "table", "timings"]

# A mask and a scheme.
Call: TypeAlias = tuple[bool, str]

HEAD_DIMS = (64, 128, 256)
# As many heads in all as leave an H200 partly idle at the lower lengths, and as fill it at all.
SEQUENCES, HEADS = (4, 32), 4
SEQLENS = (512, 1024, 2048, 4096, 8192, 16384)
# Tokens of all heads of one call: more take longer, and what is chosen no longer changes.
MOST_TOKENS = 2**20
# Heads that share K and V, and few queries behind many keys: sequences, heads of K, queries, keys.
OTHERS = (
    (32, 1, 1024, 1024),
    (32, 1, 4096, 4096),
    *((8, 4, queries, keys) for queries, keys in ((64, 4096), (512, 4096), (1024, 16384))),
)

# Medians of so many, behind as many that do not count, decide: see `cuattn.auto.choose.MARGIN`.
ROUNDS, WARMUP = 10, 2


def _cases() -> Iterator[Case]:
    """Yield the shapes, without a mask; each is timed with one as well."""
    for head_dim in HEAD_DIMS:
        for batch, seqlen in product(SEQUENCES, SEQLENS):
            if batch * HEADS * seqlen <= MOST_TOKENS:
                yield Case.square(batch, HEADS, seqlen, head_dim, False)
        for batch, kv_heads, queries, keys in OTHERS:
            case = Case.square(batch, HEADS, keys, head_dim, False)
            yield replace(case, num_kv_heads=kv_heads, seqlen_q=queries)


CASES = tuple(_cases())


def timings(
    left_out: LeftOut, progress: Progress | None = None, cases: Sequence[Case] = CASES
) -> Iterator[Timing]:
    """Yield the times of all candidates on all shapes, with a mask and without.

    Those of a shape take turns in a random order, single calls from a cold L2 cache.

    Parameters
    ----------
    left_out : callable
        Told about shapes that the GPU has no room for.
    progress : callable, optional
        Called with (shapes done, shapes in all).
    cases : sequence of Case
        Without a mask.
    """
    for done, case in enumerate(cases, 1):
        # Inputs, their codes, the output.
        with room_for(case, 3 * case.input_bytes, left_out) as fits:
            if fits:
                yield from _of(case)
        if progress is not None:
            progress(done, len(cases))


def _of(case: Case) -> Iterator[Timing]:
    calls = _calls(case)
    flush = partial(ColdL2, None, REST)
    times = time_gpu(calls, rounds=ROUNDS, warmup=WARMUP, flush=flush, order_seed=0)
    for (is_causal, scheme), time in times.items():
        masked = replace(case, is_causal=is_causal)
        yield Timing(
            **asdict(masked),
            case=KIND,
            implementation=ours.NAME,
            scheme=scheme,
            family=ours.family(scheme, masked),
            end_to_end_ms=time.ms,
            end_to_end_iqr_ms=time.iqr_ms,
        )


def _calls(case: Case) -> dict[Call, Callable[[], Any]]:
    """Bind the calls of a shape, which share inputs and output."""
    import cupy

    q = noise(case, 0)
    k, v = (token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))
    out = cupy.empty_like(q)
    return {
        (is_causal, scheme): partial(
            cuattn.attention, q, k, v, is_causal=is_causal, scheme=scheme, out=out
        )
        for is_causal, scheme in product((False, True), CANDIDATES)
    }


def table(found: Sequence[Timing]) -> SpeedTable:
    """Return the table of the current GPU."""
    device = current_device()
    return SpeedTable.of(
        found,
        gpu=device.name,
        compute_capability=device.compute_capability,
        digest=digest(ATTENTION),
    )
