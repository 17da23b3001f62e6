"""The shapes of one run of `cuattn bench`, and the kernels that it takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ..arrays.device import Target
from ..compile.jit import Spec
from ..errors import ArgumentError
from ..kv.append_spec import AppendSpec, OffsetSpec
from ..kv.options import geometry_of
from ..kv.spec import decode_spec
from ..kv_format import KV_HEAD_DIMS
from ..plan.listing import attention_specs, rate_specs
from ..reference.layout import pad_head_dim
from ..specs.attention import Type
from .caches import SCHEMES
from .cases import CORE, DECODE, Case, decoding
from .errors import Point

__all__ = ["PARTS", "QUICK", "QUICK_ROUNDS", "Grid", "kernels", "make"]

PARTS = ("ceilings", "prefill", "decode", "errors")

SEQLENS, HEAD_DIMS, HEADS = (1024, 4096, 16384), (64, 128), 32
# As many sequences as the papers have, but of long ones no more tokens than this.
BATCH, TOKENS = 4, 65536
# Besides the cases of records: where a cache becomes long enough to keep the memory busy.
SWEEP = tuple(decoding(16, 8, tokens) for tokens in (1024, 2048, 4096, 8192, 16384, 32768))
CACHE_KV_HEADS, CACHE_HEAD_DIMS = 8, (128,)

# Errors do not depend on the number of heads. Outliers are what schemes differ by.
DISTRIBUTIONS = ("normal", "outliers")
ERROR_TOKENS, CACHE_ERROR_TOKENS = 4096, 8192

# Keywords of `make`, and rounds, of a run that takes a minute.
QUICK = {
    "seqlens": (1024, 4096),
    "head_dims": (128,),
    "causal": (False,),
    "caches": ((16, 8192),),
}
QUICK_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a run measures.

    Attributes
    ----------
    ceilings : bool
        Whether the most that the GPU can do is measured.
    prefill, decode : tuple of Case
        Shapes that are timed.
    errors : tuple of (Case, str)
        Shapes and distributions on which errors are measured.
    schemes : tuple of str
        Of prefill and its errors; caches have those of `cuattn.bench.caches`.
    """

    ceilings: bool
    prefill: tuple[Case, ...]
    decode: tuple[Case, ...]
    errors: tuple[Point, ...]
    schemes: tuple[str, ...]


def make(
    *,
    schemes: Sequence[str] = CORE,
    seqlens: Sequence[int] = SEQLENS,
    head_dims: Sequence[int] | None = None,
    causal: Sequence[bool] = (False, True),
    batch: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    caches: Sequence[tuple[int, int]] | None = None,
    parts: Collection[str] = PARTS,
) -> Grid:
    """Return the grid of all combinations.

    Parameters
    ----------
    schemes : sequence of str
    seqlens : sequence of int
        Tokens of prefill.
    head_dims : sequence of int, optional
        Of everything; by default 64 and 128, and 128 of caches.
    causal : sequence of bool
        Masks of prefill.
    batch : int, optional
        Sequences of prefill; by default 4, of long sequences as many as have 65536 tokens.
    heads, kv_heads : int, optional
        Of everything; by default 32 query heads, over 8 of a cache.
    caches : sequence of (int, int), optional
        Sequences and tokens of each that are decoded; by default from 16 x 1024 to 1 x 131072.
    parts : collection of str
        Of `PARTS`; the others are left out.

    Raises
    ------
    ArgumentError
        If no kernel has such heads, or nothing is left to measure.
    """
    if (heads or HEADS) % (kv_heads or 1):
        raise ArgumentError("kv_heads", kv_heads, f"a divisor of {heads or HEADS} heads")
    channels = tuple(head_dims or HEAD_DIMS)
    for head_dim in channels:
        pad_head_dim(head_dim)  # refuses what is too large
        if head_dim % 8:
            raise ArgumentError("head_dim", head_dim, "a multiple of 8")
    of_caches = [x for x in head_dims or CACHE_HEAD_DIMS if x in KV_HEAD_DIMS]
    sequences = [(batch or max(1, min(BATCH, TOKENS // n)), n) for n in seqlens]
    q_heads = heads or HEADS
    prefill = [
        replace(Case.square(b, q_heads, n, d, c), num_kv_heads=kv_heads or q_heads)
        for d, (b, n), c in product(channels, sequences, causal)
    ]
    cases = [*DECODE, *SWEEP] if caches is None else [_decoding(*x) for x in caches]
    if heads or kv_heads:
        cases = [replace(x, num_q_heads=q_heads, num_kv_heads=kv_heads or q_heads) for x in cases]
    decode = dict.fromkeys(replace(x, head_dim=d) for d, x in product(of_caches, cases))
    grid = Grid(
        ceilings="ceilings" in parts,
        prefill=tuple(prefill) if "prefill" in parts else (),
        decode=tuple(decode) if "decode" in parts else (),
        errors=tuple(_errors(channels, of_caches)) if "errors" in parts else (),
        schemes=tuple(schemes),
    )
    if not (grid.ceilings or grid.prefill or grid.decode or grid.errors):
        raise ArgumentError("head_dims", head_dims, f"some that caches have, {KV_HEAD_DIMS}")
    return grid


def _decoding(batch: int, tokens: int) -> Case:
    return decoding(batch, CACHE_KV_HEADS, tokens)


def _errors(head_dims: Sequence[int], of_caches: Sequence[int]) -> Iterator[Point]:
    cases = [Case.square(1, 4, ERROR_TOKENS, head_dim, False) for head_dim in head_dims]
    cases += [decoding(1, 4, CACHE_ERROR_TOKENS, 16, head_dim) for head_dim in of_caches]
    yield from product(cases, DISTRIBUTIONS)


def kernels(grid: Grid, schemes: Sequence[str], target: Target) -> list[Spec]:
    """List the kernels of a grid, of those of its schemes that the target has kernels of.

    Inputs are those of `cuattn.bench.inputs`: float16, and aligned at 16 bytes where their rows
    are.
    """
    cases = [*grid.prefill, *grid.decode, *(case for case, _ in grid.errors)]
    head_dims = dict.fromkeys(case.head_dim for case in cases if not case.decodes)
    found: dict[Spec, None] = dict.fromkeys(rate_specs(target) if grid.ceilings else ())
    for spec in attention_specs(schemes, head_dims, ["float16"], target):
        if getattr(spec, "aligned", True):
            found[spec] = None
    for case in cases:
        if case.decodes:
            found.update(dict.fromkeys(_of_caches(case, target)))
    return list(found)


def _of_caches(case: Case, target: Target) -> Iterator[Spec]:
    rows = case.num_q_heads // case.num_kv_heads
    for options in SCHEMES.values():
        sizes = case.batch, case.num_kv_heads, case.head_dim, case.seqlen_kv
        kv_format = geometry_of(*sizes, **options).kv_format
        yield decode_spec(kv_format, Type.fp16, rows, target)
        for single in (False, True):
            yield AppendSpec.of(kv_format, Type.fp16, aligned=True, single=single)
    yield OffsetSpec(Type.fp16, case.head_dim, True)
