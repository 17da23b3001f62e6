"""A caller's own expressions in host memory: their functions, with their arrays and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import look_on_host, memory_of
from ..errors import ArgumentError
from ..operands.score_mod import MaskMod, ScoreMod
from ..reference.mods import bound

__all__ = ["function_of"]


def function_of(mod: ScoreMod | MaskMod | None) -> Callable[..., Any] | None:
    """Return the function of an expression, with all that it names but where a logit is.

    Raises
    ------
    ArgumentError
        If it has none.
    """
    if mod is None:
        return None
    argument = f"{mod.argument}.reference"
    if mod.reference is None:
        expected = "given for arrays in host memory, which no kernel reads: a function of NumPy"
        raise ArgumentError(argument, None, expected)
    named: dict[str, Any] = {
        name: _values(x, mod.key.label(name)) for name, x in mod.arrays.items()
    }
    named |= {number.name: number.value for number in mod.key.numbers}
    return bound(mod.reference, mod.given, named)


def _values(x: Any, label: str) -> NDArray[Any]:
    """Return an array as the function takes it: floats as float64, integers as int64."""
    seen = look_on_host(x, label)
    values = x.view(np.ndarray) if isinstance(x, np.ndarray) else memory_of(seen)
    if seen.dtype == "bfloat16":
        bits = values.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64)
    kinds = {"f": np.float64, "i": np.int64, "u": np.int64}
    return values.astype(kinds.get(values.dtype.kind, values.dtype))
