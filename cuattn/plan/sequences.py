"""What attention kernels are told of sequences whose lengths only the device knows."""

from __future__ import annotations

from typing import NamedTuple

from ..arrays.device import Device
from ..common.sizes import ceil_div
from ..compile.launch import NULL, Buffers, Launch
from ..operands.problem import Problem
from ..specs.units import UnitsSpec

__all__ = ["Units", "list_units", "most_items", "sequence_arguments"]

# Bytes of an entry of the list.
_UNIT = 8


class Units(NamedTuple):
    """The list of kernels_cu/units.cu, by numbers of a `Buffers`."""

    entries: int
    number: int


def sequence_arguments(problem: Problem, buffers: Buffers) -> dict[str, float]:
    """Return the members of AttentionParams that only kernels with such lengths read."""
    lengths = problem.lengths
    if lengths is None:
        names = ("max_seqlen_q", "max_seqlen_kv", "q_pitch", "kv_pitch", "total_kv")
        return dict.fromkeys((*names, "cu_seqlens_q", "cu_seqlens_k", "seqused_k"), NULL)
    return {
        "cu_seqlens_q": buffers["cu_seqlens_q"] if lengths.packed else NULL,
        "cu_seqlens_k": buffers["cu_seqlens_k"] if lengths.packed else NULL,
        "seqused_k": buffers["seqused_k"] if lengths.has_used else NULL,
        "max_seqlen_q": lengths.max_seqlen_q,
        "max_seqlen_kv": lengths.max_seqlen_k,
        "q_pitch": problem.q.tokens,
        "kv_pitch": lengths.key_pitch,
        "total_kv": lengths.total_k,
    }


def most_items(problem: Problem, rows: int) -> int:
    """Return how many items of so many rows the Hopper family may have."""
    if problem.is_packed:
        return UnitsSpec(rows).most(problem.batch, problem.q.tokens) * problem.q.heads
    return ceil_div(problem.seqlen_q, rows) * problem.q.heads


def list_units(
    problem: Problem, rows: int, next_item: int, buffers: Buffers, device: Device
) -> tuple[Units, Launch]:
    """Reserve memory for the list of units of so many rows; return it, and the launch.

    Parameters
    ----------
    problem : Problem
        Of sequences that lie end to end.
    rows : int
    next_item : int
        Number of the counter of the attention kernel, which is set to 0, or null.
    buffers : Buffers
    device : Device
    """
    spec = UnitsSpec(rows)
    most = spec.most(problem.batch, problem.q.tokens)
    units = Units(buffers.take(_UNIT * most), buffers.take(4))
    of_problem = sequence_arguments(problem, buffers)
    values = {
        **of_problem,
        "units": units.entries,
        "unit_count": units.number,
        "next_item": next_item,
        "batch": problem.batch,
        "most": most,
        "total_q": problem.q.tokens,
    }
    return units, Launch(spec, device, (spec.ctas(problem.batch),), values)
