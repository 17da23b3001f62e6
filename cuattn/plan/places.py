"""Where the attention kernel finds its operands, and what has to be made for it first."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..operands.layout import Form
from ..operands.operand import Operand
from ..operands.problem import Problem
from ..specs.coding import Name
from ..specs.unpack import PIECE, UnpackSpec
from .item import Item
from .kernels import half_type
from .operand_maps import can_read

__all__ = ["PARTS", "Place", "place", "unpacking"]

# What an operand's three addresses are: an array or codes, their scales, and its vector.
PARTS = ("", "_scale", "_vector")


class Place(NamedTuple):
    """An operand of the attention kernel.

    Parameters
    ----------
    data, scale, vector : int
        Numbers of `Buffers`.
    strides : tuple of int
        Of `data`, in bytes.
    made_by : Item or None
        What they are made of.
    packed : int
        Number of the codes of 4 bits that `data` is made of, or null.
    """

    data: int
    strides: tuple[int, ...]
    scale: int = NULL
    vector: int = NULL
    made_by: Item | None = None
    packed: int = NULL


def place(name: Name, problem: Problem, buffers: Buffers, *, mapped: bool, packed: bool) -> Place:
    """Find an operand where it is, or reserve memory for what is made of it.

    Parameters
    ----------
    mapped : bool
        Whether the attention kernel reads it by a tensor map.
    packed : bool
        Whether it reads codes of 4 bits two to a byte.
    """
    operand: Operand = getattr(problem, name)
    form = Form.of(problem.scheme, name, operand.shape, packed)
    x, scale, vector = (buffers[f"{name}{part}"] for part in PARTS)
    if operand.coded:
        given = Form.of(problem.scheme, name, operand.shape, packed=True)
        if given.code is form.code:
            return Place(x, form.byte_strides, scale, vector)
        data = buffers.take(form.nbytes)
        return Place(data, form.byte_strides, scale, vector, packed=x)
    as_it_is = form.code is None and operand.dtype is half_type(problem.scheme, operand.dtype)
    if as_it_is and operand.direct and (can_read(operand) or not mapped):
        strides = tuple(step * operand.dtype.nbytes for step in operand.strides)
        return Place(x, strides[:3])
    item = Item(
        operand,
        x,
        data=buffers.take(form.nbytes),
        scale=buffers.take(4 * math.prod(form.scale)) if form.scale else NULL,
        vector=buffers.take(4 * math.prod(form.vector)) if form.smoothed else NULL,
    )
    return Place(item.data, form.byte_strides, item.scale, item.vector, item)


def unpacking(name: Name, where: Place, problem: Problem, device: Device) -> list[Launch]:
    """Return the launch that unpacks an operand's codes, if they have to be."""
    if where.packed == NULL:
        return []
    spec = UnpackSpec()
    codes = Form.of(problem.scheme, name, getattr(problem, name).shape).nbytes
    values = {"packed": where.packed, "codes": where.data, "pieces": codes // PIECE}
    return [Launch(spec, device, (spec.ctas(codes),), values)]
