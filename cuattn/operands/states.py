"""States of attention that are to be merged: what a caller gave, part by part, and its checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..arrays.view import Array, View
from ..errors import ArgumentError
from .operand import DTYPES, Operand, array_operand, check_alignment, in_order, output_operand

__all__ = ["States", "as_elements", "parts_of"]

_AXES = {"HND": "batch, heads, seqlen, head_dim", "NHD": "batch, seqlen, heads, head_dim"}
_LSE_AXES = "batch, heads, seqlen"

# A CTA has whole rows, and kernels count those of all heads in 32-bit integers.
_MAX_HEAD_DIM = 1024
_MAX_ROWS = 2**31 - 1


def parts_of(x: Any, name: str, look: Callable[[Any, str], View]) -> list[View]:
    """Look at the parts of an argument, which is a list or tuple of arrays, or one of them stacked.

    Parameters
    ----------
    x : sequence of arrays, or array
        Parts are along the first axis of the latter.
    name : {"o", "lse"}
        Of the argument.
    look : callable
        Looks at an array, of which errors give it the name.

    Raises
    ------
    ArgumentError
        If there is no part, or an array has not one axis more than a part.
    """
    if isinstance(x, (list, tuple)):
        if not x:
            raise ArgumentError(name, x, "a sequence of at least one array")
        return [look(part, f"{name}[{i}]") for i, part in enumerate(x)]
    whole = look(x, name)
    axes = _LSE_AXES if name == "lse" else _AXES["HND"]
    if len(whole.shape) != len(axes.split(",")) + 1 or not whole.shape[0]:
        expected = f"[parts, {axes}] of at least one part, unless {name} is a sequence of parts"
        raise ArgumentError(f"{name}.shape", whole.shape, expected)
    if whole.dtype not in DTYPES:
        raise ArgumentError(f"{name}.dtype", whole.dtype, f"one of {list(DTYPES)}")
    step = whole.strides[0] * DTYPES[whole.dtype].nbytes
    shape, strides = whole.shape[1:], whole.strides[1:]
    return [
        whole._replace(ptr=whole.ptr + i * step, shape=shape, strides=strides)
        for i in range(whole.shape[0])
    ]


def as_elements(x: View, itemsize: int) -> View:
    """Look at an array of float32 as elements of 2 or 4 bytes, with one more axis of them."""
    n = 4 // itemsize
    return x._replace(shape=(*x.shape, n), strides=(*(n * step for step in x.strides), 1))


@dataclass(frozen=True)
class States:
    """Arguments of `cuattn.merge_states` that have been checked; see there.

    Parameters
    ----------
    o : tuple of Operand
    lse : tuple of Array
        [batch, heads, seqlen] whatever the layout.
    layout : str
    device : tuple of int
    """

    o: tuple[Operand, ...]
    lse: tuple[Array, ...]
    layout: str
    device: tuple[int, int]

    @classmethod
    def of(cls, o: Sequence[Array], lse: Sequence[Array], layout: str) -> States:
        """Check everything but the output.

        Raises
        ------
        ArgumentError
            Naming the first argument that is wrong.
        """
        if not isinstance(layout, str) or layout not in _AXES:
            raise ArgumentError("layout", layout, f"one of {list(_AXES)}")
        first = o[0]
        for i, x in enumerate(o):
            _check_o(x, f"o[{i}]", first, layout)
        operands = tuple([array_operand(x, layout) for x in o])
        shape = operands[0].shape
        if len(lse) != len(o):
            raise ArgumentError("lse", f"{len(lse)} parts", f"of {len(o)} parts, as o is")
        for i, x in enumerate(lse):
            _check_lse(x, f"lse[{i}]", shape[:3], first.device)
        head_dim = shape[3]
        if head_dim % 8 or not 8 <= head_dim <= _MAX_HEAD_DIM:
            expected = f"a multiple of 8 from 8 to {_MAX_HEAD_DIM}"
            raise ArgumentError("head_dim", head_dim, f"{expected} (the last axis of o[0])")
        if math.prod(shape[:3]) > _MAX_ROWS:
            expected = f"such that batch * heads * seqlen <= {_MAX_ROWS}"
            raise ArgumentError("o[0].shape", first.shape, expected)
        return cls(operands, tuple(lse), layout, first.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes [batch, heads, seqlen, head_dim] of each part and of the result."""
        return self.o[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The same in the caller's layout."""
        return in_order(self.shape, self.layout)

    def output(self, out: Array) -> Operand:
        """Check the caller's output and return it as an operand.

        Raises
        ------
        ArgumentError
            As `output_operand`.
        """
        return output_operand(
            out, self.output_shape, self.o[0].dtype, self.device, self.layout, "o[0]"
        )


def _check_o(x: Array, name: str, first: Array, layout: str) -> None:
    if len(x.shape) != 4:
        expected = f"[{_AXES[layout]}] for layout {layout!r}"
        raise ArgumentError(f"{name}.shape", x.shape, expected)
    if x.dtype not in DTYPES:
        raise ArgumentError(f"{name}.dtype", x.dtype, f"one of {list(DTYPES)}")
    for attribute in ("shape", "dtype", "device"):
        found, wanted = getattr(x, attribute), getattr(first, attribute)
        if found != wanted:
            raise ArgumentError(f"{name}.{attribute}", found, f"{wanted}, the {attribute} of o[0]")
    check_alignment(name, x)


def _check_lse(x: Array, name: str, shape: tuple[int, ...], device: tuple[int, int]) -> None:
    if x.shape != shape:
        raise ArgumentError(f"{name}.shape", x.shape, f"{shape}, the [{_LSE_AXES}] of o[0]")
    if x.dtype != "float32":
        raise ArgumentError(f"{name}.dtype", x.dtype, "float32")
    if x.device != device:
        raise ArgumentError(f"{name}.device", x.device, f"{device}, the device of o[0]")
    check_alignment(name, x)
