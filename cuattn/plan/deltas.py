"""The launch that computes what smoothing Q takes from the exponents."""

from __future__ import annotations

import math

from ..arrays.device import Device
from ..common.sizes import round_up
from ..compile.launch import Buffers, Launch
from ..operands.operand import compact
from ..operands.problem import Problem
from ..reference.layout import LOG2_BIAS, pad_head_dim
from ..specs.attention import Type
from ..specs.coding import by_logarithm
from ..specs.smoothing import KEY_PAD, BlockMeansSpec, DeltaSpec
from .operand_buffers import ConversionJob, of_sequences, source

__all__ = ["deltas"]


def deltas(
    problem: Problem, means: int, k_vector: int, buffers: Buffers, device: Device
) -> tuple[int, Launch]:
    """Reserve memory for the products of Q's means with K; return its number, and the launch.

    Parameters
    ----------
    problem : Problem
        If its K is quantized already, the products are those of "k_values" among the buffers, in
        float32 and contiguous.
    means : int
        Number of those of Q's blocks.
    k_vector : int
        Number of what smoothing subtracts from K, or null.
    buffers : Buffers
    device : Device
    """
    coded, shape = problem.k.coded, problem.k.shape
    operand, lengths = of_sequences("k", problem, buffers)
    keys = ConversionJob(
        compact(shape, Type.fp32) if coded else operand,
        buffers["k_values" if coded else "k"],
        lengths=lengths,
    )
    head_dim = shape[3]
    kind = keys.operand.dtype, pad_head_dim(head_dim), keys.operand.aligned
    spec = DeltaSpec(*kind, varlen=lengths is not None)
    blocks = BlockMeansSpec.blocks(problem.seqlen_q)
    rows = blocks * problem.group
    seen = operand.tokens - (problem.seqlen_q if problem.is_causal else 0)
    if lengths is not None:  # where rows end is not known here
        seen = operand.tokens
    tiles = spec.tiles(operand.tokens)
    delta = buffers.take(4 * operand.heads * rows * round_up(operand.tokens, KEY_PAD))
    values = {
        **source(keys),
        "vector": k_vector,
        "mean": means,
        "delta": delta,
        "head_dim": head_dim,
        "rows": rows,
        "blocks": blocks,
        "last_key": seen,
        "tiles": tiles,
        "factor": problem.softmax_scale * math.log2(math.e),
        # Unless V's logarithms hold it: kBiased in kernels_cu/attn/p_range.cuh.
        "bias": 0.0 if by_logarithm(problem.scheme) else LOG2_BIAS,
    }
    return delta, Launch(spec, device, (operand.heads * tiles,), values)
