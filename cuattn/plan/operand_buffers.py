"""Buffers of Q, K and V: what is converted, and where the attention kernel finds the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..operands.layout import CodeLayout
from ..operands.operand import Operand
from ..operands.problem import Problem
from ..specs.coding import Name
from ..specs.unpack import PIECE, UnpackSpec
from .kernels import half_type
from .tensor_maps import can_read

__all__ = [
    "PARTS",
    "ConversionJob",
    "OperandBuffers",
    "operand_buffers",
    "source",
    "unpacking",
    "vector_bytes",
]

# What an operand's three addresses are: an array or codes, their scales, and its vector.
PARTS = ("", "_scale", "_vector")


@dataclass(frozen=True)
class ConversionJob:
    """An array to convert; all but the first field are numbers of a `Buffers`.

    Parameters
    ----------
    operand : Operand
    x : int
        The array.
    data, scale : int
        Where codes and scales go, or values.
    vector : int
        Where the smoothing vector goes, or those of blocks of Q.
    """

    operand: Operand
    x: int
    data: int = NULL
    scale: int = NULL
    vector: int = NULL


def source(job: ConversionJob) -> dict[str, int]:
    """Return the members that the parameter structs of all such kernels have in common."""
    operand = job.operand
    batch, head, token = operand.strides[:3]
    return {
        "x": job.x,
        "stride_batch": batch,
        "stride_head": head,
        "stride_token": token,
        "num_heads": operand.shape[1],
        "seqlen": operand.tokens,
    }


def vector_bytes(operand: Operand) -> int:
    """Return the bytes of a float32 vector for each head."""
    return 4 * operand.heads * operand.shape[3]


class OperandBuffers(NamedTuple):
    """An operand of the attention kernel.

    Parameters
    ----------
    data, scale, vector : int
        Numbers of `Buffers`.
    strides : tuple of int
        Of `data`, in bytes.
    made_by : ConversionJob or None
        What they are made of.
    packed : int
        Number of the codes of 4 bits that `data` is made of, or null.
    """

    data: int
    strides: tuple[int, ...]
    scale: int = NULL
    vector: int = NULL
    made_by: ConversionJob | None = None
    packed: int = NULL


def operand_buffers(
    name: Name, problem: Problem, buffers: Buffers, *, mapped: bool, packed: bool
) -> OperandBuffers:
    """Find an operand where it is, or reserve memory for what is made of it.

    Parameters
    ----------
    mapped : bool
        Whether the attention kernel reads it by a tensor map.
    packed : bool
        Whether it reads codes of 4 bits two to a byte.
    """
    operand: Operand = getattr(problem, name)
    code_layout = CodeLayout.of(problem.scheme, name, operand.shape, packed)
    x, scale, vector = (buffers[f"{name}{part}"] for part in PARTS)
    if operand.coded:
        given = CodeLayout.of(problem.scheme, name, operand.shape, packed=True)
        if given.code is code_layout.code:
            return OperandBuffers(x, code_layout.byte_strides, scale, vector)
        data = buffers.take(code_layout.nbytes)
        return OperandBuffers(data, code_layout.byte_strides, scale, vector, packed=x)
    as_it_is = code_layout.code is None and operand.dtype is half_type(
        problem.scheme, operand.dtype
    )
    if as_it_is and operand.direct and (can_read(operand) or not mapped):
        strides = tuple(step * operand.dtype.nbytes for step in operand.strides)
        return OperandBuffers(x, strides[:3])
    job = ConversionJob(
        operand,
        x,
        data=buffers.take(code_layout.nbytes),
        scale=buffers.take(4 * math.prod(code_layout.scale)) if code_layout.scale else NULL,
        vector=buffers.take(4 * math.prod(code_layout.vector)) if code_layout.smoothed else NULL,
    )
    return OperandBuffers(job.data, code_layout.byte_strides, job.scale, job.vector, job)


def unpacking(name: Name, where: OperandBuffers, problem: Problem, device: Device) -> list[Launch]:
    """Return the launch that unpacks an operand's codes, if they have to be."""
    if where.packed == NULL:
        return []
    spec = UnpackSpec()
    codes = CodeLayout.of(problem.scheme, name, getattr(problem, name).shape).nbytes
    values = {"packed": where.packed, "codes": where.data, "pieces": codes // PIECE}
    return [Launch(spec, device, (spec.ctas(codes),), values)]
