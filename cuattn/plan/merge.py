"""Merging of states on the GPU with everything settled that does not depend on addresses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..arrays.device import current_device
from ..arrays.overlap import extent
from ..arrays.view import Array
from ..common.remember import remember
from ..common.sizes import ceil_div
from ..compile.chain import Chain
from ..compile.launch import NULL, Buffers, Launch
from ..operands.operand import compact_strides, dtype_name, in_order
from ..operands.states import States
from ..specs.attention import Type
from ..specs.merge import MergeSpec

__all__ = ["MergeCall", "prepare_merge"]

# Kinds of calls that a process remembers.
_REMEMBERED = 256


@dataclass(frozen=True, eq=False)
class MergeCall:
    """What all calls on arrays of the same kinds have in common.

    Attributes
    ----------
    copied : tuple of int
        Parts whose `o` has to be made contiguous first; until then nothing else is prepared.
    output, lse : (tuple of int, str)
        Shape and dtype of the results, the former in the caller's layout.
    writes_out : bool
        Whether the kernel can write to where the caller wants the output.
    itemsize : int
        Bytes of an element of `o`.
    extents : dict of str to tuple of int
        Bytes that the caller's arrays span, from their element 0 on: of "o[0]", "lse[0]" and so on,
        and "out".
    launches : Chain
        Of the addresses of all `o`, all `lse`, and both results. Empty if there are no rows.
    """

    copied: tuple[int, ...]
    output: tuple[tuple[int, ...], str]
    lse: tuple[tuple[int, ...], str]
    writes_out: bool
    itemsize: int
    extents: dict[str, tuple[int, int]]
    launches: Chain


@remember(_REMEMBERED)
def prepare_merge(
    o: tuple[Array, ...], lse: tuple[Array, ...], out: Array | None, layout: str
) -> MergeCall:
    """Check a call on CuPy's current device, plan it and load its kernels.

    Raises
    ------
    ArgumentError, UnsupportedError, CompileError
        As `cuattn.merge_states`.
    """
    states = States.of(o, lse, layout)
    dtype = states.o[0].dtype
    copied = tuple([i for i, x in enumerate(o) if x.strides[-1] != 1 and all(x.shape)])
    target = None if out is None else states.output(out)
    writes_out = target is None or target.strides[3] == 1
    o_strides = in_order(compact_strides(states.output_shape), layout)
    aligned = all(x.aligned for x in states.o)
    if target is not None and writes_out:
        o_strides, aligned = target.strides, aligned and target.aligned
    parts = range(len(o))
    names = [f"{x}[{i}]" for x in ("o", "lse") for i in parts]
    extents = {f"o[{i}]": extent(x.shape, x.strides, dtype.nbytes) for i, x in enumerate(o)}
    extents |= {f"lse[{i}]": extent(x.shape, x.strides, 4) for i, x in enumerate(lse)}
    if out is not None:
        extents["out"] = extent(out.shape, out.strides, dtype.nbytes)
    buffers = Buffers(*names, "out", "out_lse")
    launches: list[Launch] = []
    if math.prod(states.shape) and not copied:
        launches += _launches(states, o_strides, aligned, buffers)
    return MergeCall(
        copied=copied,
        output=(states.output_shape, dtype_name(dtype)),
        lse=(states.shape[:3], "float32"),
        writes_out=writes_out,
        itemsize=dtype.nbytes,
        extents=extents,
        launches=Chain(launches, buffers),
    )


def _launches(
    states: States, o_strides: tuple[int, ...], aligned: bool, buffers: Buffers
) -> Iterator[Launch]:
    """Yield launches that merge some parts each, with what those before have merged."""
    batch, heads, seqlen, head_dim = states.shape
    rows = batch * heads * seqlen
    dtype = states.o[0].dtype
    groups = ceil_div(len(states.o), MergeSpec.parts)
    # One is read while another is written.
    carried = [
        (buffers.take(4 * rows * head_dim), buffers.take(4 * rows))
        for _ in range(min(groups - 1, 2))
    ]
    before = NULL, NULL
    for group in range(groups):
        last = group == groups - 1
        to = (buffers["out"], buffers["out_lse"]) if last else carried[group % 2]
        spec = MergeSpec(dtype, dtype if last else Type.fp32, aligned)
        first = group * spec.parts
        parts = range(first, min(first + spec.parts, len(states.o)))
        tile = spec.tile(head_dim)
        values = {
            "part": [_part(states, i, buffers) for i in parts],
            "carried_o": before[0],
            "carried_lse": before[1],
            "o": to[0],
            "lse": to[1],
            **_strides("o", o_strides if last else compact_strides(states.shape)),
            "num_parts": len(parts),
            "num_heads": heads,
            "seqlen": seqlen,
            "head_dim": head_dim,
            "rows": rows,
            "tile": tile,
            "lanes": spec.lanes(head_dim),
        }
        yield Launch(spec, current_device(), (ceil_div(rows, tile),), values)
        before = to


def _part(states: States, i: int, buffers: Buffers) -> dict[str, int]:
    return {
        "o": buffers[f"o[{i}]"],
        "lse": buffers[f"lse[{i}]"],
        **_strides("o", states.o[i].strides),
        **_strides("lse", states.lse[i].strides),
    }


def _strides(name: str, strides: tuple[int, ...]) -> dict[str, int]:
    axes = ("batch", "head", "token")
    return {f"{name}_stride_{axis}": step for axis, step in zip(axes, strides[:3], strict=True)}
