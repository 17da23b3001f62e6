"""Every kernel that latent caches can need."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import TypeAlias

from ..arrays.device import Target
from ..operands.operand import DTYPES
from .format import ROPE_DTYPES
from .spec import LatentAppendSpec, LatentDecodeSpec, LatentMergeSpec, latent_decode_spec

__all__ = ["LatentSpec", "latent_specs"]

LatentSpec: TypeAlias = LatentAppendSpec | LatentDecodeSpec | LatentMergeSpec

# Queries times heads up to the most that a kernel takes at once.
_ROWS = range(1, 65)


def latent_specs(dtypes: Iterable[str], target: Target) -> list[LatentSpec]:
    """List every kernel that appending and attending can need, each once.

    Parameters
    ----------
    dtypes : iterable of {"float16", "bfloat16", "float32"}
        Of the arrays that are appended and of the queries.
    target : Target
        From `cuattn.arrays.device.target`.
    """
    specs: dict[LatentSpec, None] = {}
    for dtype, rope_dtype in product(dtypes, ROPE_DTYPES):
        element, rope = DTYPES[dtype], DTYPES[rope_dtype]
        for rows in _ROWS:
            spec = latent_decode_spec(element, rope, rows, target)
            specs[spec] = specs[LatentMergeSpec(element, spec.rows)] = None
        for aligned in (True, False):
            specs[LatentAppendSpec(element, rope, aligned)] = None
    return list(specs)
