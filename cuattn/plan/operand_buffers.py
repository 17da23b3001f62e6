"""Buffers of Q, K and V: what is converted, and where the attention kernel finds the result."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..operands.layout import CodeLayout
from ..operands.operand import Operand
from ..operands.problem import Problem
from ..specs.attention import Scope
from ..specs.coding import Name, stored_scope
from ..specs.unpack import PIECE, UnpackSpec
from .kernels import half_type
from .tensor_maps import can_read

__all__ = [
    "PARTS",
    "ConversionJob",
    "JobLengths",
    "OperandBuffers",
    "of_sequences",
    "operand_buffers",
    "source",
    "stored_shape",
    "unpacking",
    "vector_bytes",
]

# What an operand's three addresses are: an array or codes, their scales, and its vector.
PARTS = ("", "_scale", "_vector")


class JobLengths(NamedTuple):
    """Lengths of sequences, and where these lie.

    Parameters
    ----------
    cu_seqlens, seqused : int
        Numbers of a `Buffers`, or null.
    total : int
        Tokens of the array: of all sequences, or of a slot.
    pitch : int
        Tokens of a head in what is made of it.
    """

    cu_seqlens: int
    seqused: int
    total: int
    pitch: int


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
    lengths : JobLengths, optional
        If only the device knows them. The operand is then one of as many batches as there are
        sequences, all of them as long as one may be, whose strides lead to where the first lies.
    """

    operand: Operand
    x: int
    data: int = NULL
    scale: int = NULL
    vector: int = NULL
    lengths: JobLengths | None = None


_NO_LENGTHS = JobLengths(NULL, NULL, 0, 0)


def source(job: ConversionJob) -> dict[str, int]:
    """Return the members that the parameter structs of all such kernels have in common."""
    operand, lengths = job.operand, job.lengths or _NO_LENGTHS
    batch, head, token = operand.strides[:3]
    return {
        "x": job.x,
        "stride_batch": batch,
        "stride_head": head,
        "stride_token": token,
        "num_heads": operand.shape[1],
        "seqlen": operand.tokens,
        "cu_seqlens": lengths.cu_seqlens,
        "seqused": lengths.seqused,
        "total": lengths.total,
        "max_seqlen": operand.tokens,
        "pitch": lengths.pitch,
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
    code_layout = CodeLayout.of(problem.scheme, name, stored_shape(name, problem), packed)
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
    operand, lengths = of_sequences(name, problem, buffers)
    scales, vector_shape = code_layout.scale, code_layout.vector
    if problem.is_packed:
        # These are of each sequence, wherever it lies.
        if name == "v" and scales and stored_scope(problem.scheme, "v") is Scope.channel:
            scales = (problem.batch, *scales[1:])
        vector_shape = CodeLayout.of(problem.scheme, name, operand.shape).vector
    job = ConversionJob(
        operand,
        x,
        data=buffers.take(code_layout.nbytes),
        scale=buffers.take(4 * math.prod(scales)) if scales else NULL,
        vector=buffers.take(4 * math.prod(vector_shape)) if code_layout.smoothed else NULL,
        lengths=lengths,
    )
    return OperandBuffers(job.data, code_layout.byte_strides, job.scale, job.vector, job)


def stored_shape(name: Name, problem: Problem) -> tuple[int, ...]:
    """Return the shape of an operand of the products: codes of K and V are in whole blocks."""
    operand: Operand = getattr(problem, name)
    lengths = problem.lengths
    is_coded = CodeLayout.of(problem.scheme, name, operand.shape).code is not None
    if lengths is None or not lengths.packed or name == "q" or not is_coded:
        return operand.shape
    return (*operand.shape[:2], lengths.key_pitch, operand.shape[3])


def of_sequences(
    name: Name, problem: Problem, buffers: Buffers
) -> tuple[Operand, JobLengths | None]:
    """Return an operand as a `ConversionJob` has it, and its lengths."""
    operand: Operand = getattr(problem, name)
    lengths = problem.lengths
    if lengths is None:
        return operand, None
    bounds = "cu_seqlens_q" if name == "q" else "cu_seqlens_k"
    found = JobLengths(
        cu_seqlens=buffers[bounds] if lengths.packed else NULL,
        seqused=buffers["seqused_k"] if lengths.has_used and name != "q" else NULL,
        total=operand.tokens,
        pitch=stored_shape(name, problem)[2],
    )
    most = problem.seqlen_q if name == "q" else problem.seqlen_kv
    _, heads, _, head_dim = operand.shape
    return replace(operand, shape=(problem.batch, heads, most, head_dim)), found


def unpacking(name: Name, where: OperandBuffers, problem: Problem, device: Device) -> list[Launch]:
    """Return the launch that unpacks an operand's codes, if they have to be."""
    if where.packed == NULL:
        return []
    spec = UnpackSpec()
    codes = CodeLayout.of(problem.scheme, name, getattr(problem, name).shape).nbytes
    values = {"packed": where.packed, "codes": where.data, "pieces": codes // PIECE}
    return [Launch(spec, device, (spec.ctas(codes),), values)]
