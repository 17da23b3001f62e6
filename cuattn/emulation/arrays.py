"""A caller's arrays in host memory: what is read of them, and the result as they want it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import look_on_host, new_on_host, to_host, write_on_host
from ..arrays.overlap import check_writable, overlap
from ..arrays.pytorch import note_write
from ..arrays.view import Array, View
from ..errors import ArgumentError
from ..operands.block_mask import BlockMask
from ..operands.operand import dtype_name, itemsize
from ..operands.problem import Problem
from ..operands.quantized import QuantizedTensor
from ..reference.rounding import saturate
from ..specs.coding import Name

__all__ = [
    "TOKENS",
    "check_finite",
    "delivered",
    "output_on_host",
    "signature_on_host",
    "values_on_host",
]

# The layout [token, head, head_dim].
TOKENS = "THD"


def signature_on_host(x: Any, name: str) -> Any:
    """Return what the plan has to know of an array, a QuantizedTensor or a BlockMask."""
    if isinstance(x, (QuantizedTensor, BlockMask)):
        return x.signature
    seen = look_on_host(x, name)
    return Array(seen.shape, seen.strides, seen.dtype, seen.device)


def values_on_host(x: Any, name: str, layout: str) -> Any:
    """Return an array [batch, head, token, head_dim] of NumPy, or a QuantizedTensor as it is.

    An array of layout `TOKENS` has a batch of 1.
    """
    if isinstance(x, QuantizedTensor):
        return x
    values = to_host(x, name).values
    if layout == TOKENS:
        return values.swapaxes(0, 1)[None]
    return values.swapaxes(1, 2) if layout == "NHD" else values


def check_finite(values: Mapping[Name, Any], given: Mapping[Name, Any]) -> None:
    """Look for NaN and infinities in values, or scales, of arguments by their names.

    Raises
    ------
    ArgumentError
        Naming the first that has any.
    """
    for name, x in values.items():
        if not np.isfinite(x.scale if isinstance(x, QuantizedTensor) else x).all():
            raise ArgumentError(name, given[name], "without NaN and infinity")


def output_on_host(out: Any, problem: Problem, given: Mapping[Any, Any]) -> View:
    """Look at a caller's output, and check it against the problem and the inputs by their names.

    Raises
    ------
    ArgumentError
        If it does not fit, cannot be written, or overlaps an input.
    """
    target = look_on_host(out, "out")
    problem.output(signature_on_host(out, "out"))
    check_writable(out, target)
    nbytes = problem.q.dtype.nbytes
    for name, x in given.items():
        if isinstance(x, QuantizedTensor):
            continue
        seen = look_on_host(x, name)
        if overlap(target, seen, nbytes, itemsize(seen.dtype)):
            raise ArgumentError("out", out, f"in memory apart from that of {name}")
    note_write(out)
    return target


def delivered(
    o: NDArray[np.float64],
    lse: NDArray[np.float64],
    problem: Problem,
    like: Any,
    out: Any,
    target: View | None,
) -> tuple[Any, Any]:
    """Return results in the caller's layout, type and library, which is that of `like`.

    The first is `out`, seen as `target`, if there is one; what is finite stays so: beyond the range
    of the type it becomes its largest number. The second is None if nobody asked for it.
    """
    dtype = dtype_name(problem.q.dtype)
    if problem.is_packed:
        o, lse = o[0].swapaxes(0, 1), lse[0]
    elif problem.layout == "NHD":
        o = o.swapaxes(1, 2)
    o = saturate(o, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if target is not None:
            write_on_host(target, o)
        else:
            out = new_on_host(o, dtype, like)
        return out, new_on_host(lse, "float32", like) if problem.return_lse else None
