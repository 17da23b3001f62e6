"""The kernels that a run takes, to be compiled at a time rather than one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..arrays.device import Target
from ..compile.jit import Spec
from ..kv.spec import AppendSpec, OffsetSpec, decode_spec
from ..kv_format import KVFormat
from ..plan.listing import attention_specs, rate_specs
from ..specs.attention import Type
from .caches import SCHEMES
from .cases import Case
from .grid import Grid

__all__ = ["needed"]


def needed(grid: Grid, schemes: Sequence[str], target: Target) -> list[Spec]:
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
        kv_format = KVFormat(case.head_dim, options["bits"], options["bits"])
        yield decode_spec(kv_format, Type.fp16, rows, target)
        yield AppendSpec.of(kv_format, Type.fp16, aligned=True)
    yield OffsetSpec(Type.fp16, case.head_dim, True)
