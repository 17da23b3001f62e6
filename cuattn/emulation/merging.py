"""`cuattn.merge_states` on arrays in host memory: the reference's definition, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import heads_first, look_on_host, new_on_host, to_host, write_on_host
from ..arrays.overlap import check_writable, overlap
from ..arrays.pytorch import note_write
from ..arrays.view import Array, View
from ..errors import ArgumentError
from ..operands.operand import dtype_name
from ..operands.states import States, as_elements, parts_of
from ..reference.merging import merge_states

__all__ = ["merge_on_host"]


def merge_on_host(o: Any, lse: Any, layout: str, out: Any, first: Any) -> tuple[Any, Any]:
    """Merge states in host memory.

    Parameters
    ----------
    o, lse : sequence of arrays, or array
    layout : str
    out : array or None
    first : array
        Whose library the results are of.

    Returns
    -------
    o : array, or `out`
    lse : array of float32 [batch, heads, seqlen]
    """
    seen = {name: parts_of(x, name, look_on_host) for name, x in (("o", o), ("lse", lse))}
    states = States.of(
        [_signature(x) for x in seen["o"]], [_signature(x) for x in seen["lse"]], layout
    )
    target = None if out is None else _output(out, states, seen)
    dtype = dtype_name(states.o[0].dtype)
    parts = np.stack([heads_first(x, layout) for x in _values(o, "o")])
    merged, merged_lse = merge_states(parts, np.stack(_values(lse, "lse")))
    merged = heads_first(merged, layout)
    with np.errstate(over="ignore", invalid="ignore"):
        if target is None:
            out = new_on_host(merged, dtype, first)
        else:
            write_on_host(target, merged)
        return out, new_on_host(merged_lse, "float32", first)


def _signature(x: View) -> Array:
    return Array(x.shape, x.strides, x.dtype, x.device)


def _values(x: Any, name: str) -> list[NDArray[np.floating]]:
    """Return the parts of an argument as arrays of NumPy."""
    if isinstance(x, (list, tuple)):
        return [to_host(part, f"{name}[{i}]").values for i, part in enumerate(x)]
    return [*to_host(x, name).values]


def _output(out: Any, states: States, seen: dict[str, list[View]]) -> View:
    """Look at a caller's output, and check it against the parts."""
    target = look_on_host(out, "out")
    states.output(_signature(target))
    check_writable(out, target)
    itemsize = states.o[0].dtype.nbytes
    for name, views in seen.items():
        for i, x in enumerate(views):
            elements = x if name == "o" else as_elements(x, itemsize)
            if overlap(target, elements, itemsize):
                raise ArgumentError("out", out, f"in memory apart from that of {name}[{i}]")
    note_write(out)
    return target
