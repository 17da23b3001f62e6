"""Compile the kernels of a GPU check beforehand, in a process on every core.

Those of the measurements come first, then what most tests need; the tests compile the rest as they
go. What has been compiled when time is up stays on disk.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial

from cuattn.arrays.device import Target, current_device, target
from cuattn.auto.table import CANDIDATES
from cuattn.bench import auto_table, cases, grid
from cuattn.bench.grid import Grid
from cuattn.bench.models import MODELS
from cuattn.compile.jit import Spec, precompile
from cuattn.errors import CuattnError
from cuattn.plan.kernels import supported
from cuattn.plan.listing import attention_specs
from cuattn.reference.layout import HEAD_DIMS

from . import chunks, feature_cases, sanitizer_scores
from .measurements import OF_MMA
from .mma_family import mma_family
from .sanitizer_grid import RAGGED

__all__ = ["compile_all", "measured", "tested"]


def compile_all() -> int:
    """Compile for this computer's GPU what is not on disk yet; return how many kernels were not.

    A kernel that cannot be compiled is left to whoever needs it, and fails there.
    """
    facts = target(current_device().arch)
    specs = list(dict.fromkeys([*measured(facts), *tested(facts)]))
    # Not forked: the parent has a CUDA context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return sum(pool.map(partial(_compile, arch=facts.arch), specs))


def measured(facts: Target) -> Iterator[Spec]:
    """Yield the kernels of all phases that measure, and those that the sanitizer watches."""
    schemes = [scheme.name for scheme in supported(facts)]
    square = [*cases.PREFILL, *cases.ACCURACY]
    yield from grid.kernels(_grid(square, list(cases.DECODE), schemes), schemes, facts)
    compared = [name for name in cases.COMPARED if name in schemes]
    models = [model.case for model in MODELS]
    yield from grid.kernels(_grid([*cases.COMPARISON, *models], [], compared), compared, facts)
    yield from grid.kernels(_grid(list(auto_table.CASES), [], CANDIDATES), CANDIDATES, facts)
    yield from feature_cases.kernels(facts, [x for x in feature_cases.SCHEMES if x in schemes])
    yield from chunks.kernels(facts)
    yield from sanitizer_scores.kernels(RAGGED, facts)
    with mma_family():
        by_mma = grid.kernels(_grid(cases.PREFILL, [], OF_MMA), OF_MMA, facts)
        by_mma += sanitizer_scores.kernels(RAGGED, facts)
    yield from by_mma
    # The sanitizer's grid has these types and sizes, rows that begin at whole vectors.
    for spec in attention_specs(schemes, (64, 128), ("float16", "float32"), facts):
        if getattr(spec, "aligned", True):
            yield spec


def tested(facts: Target) -> Iterator[Spec]:
    """Yield what most tests of attention need."""
    specs = attention_specs(supported(facts), HEAD_DIMS, ("float16", "float32"), facts)
    yield from (spec for spec in specs if getattr(spec, "aligned", True))


def _grid(prefill: list[cases.Case], decode: list[cases.Case], schemes: Sequence[str]) -> Grid:
    return Grid(
        ceilings=bool(decode),
        prefill=tuple(prefill),
        decode=tuple(decode),
        errors=(),
        schemes=tuple(schemes),
    )


def _compile(spec: Spec, arch: str) -> int:
    with suppress(CuattnError):
        return precompile([spec], [arch], jobs=1)
    return 0
