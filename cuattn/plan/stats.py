"""The launches that look at operands as a whole: means, and ranges of channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..specs.coding import Name
from ..specs.stats import StatsSpec
from .operand_buffers import ConversionJob, source, vector_bytes

__all__ = ["Range", "stats"]


class Range(NamedTuple):
    """Where the smallest and largest elements of an operand's channels are."""

    low: int = NULL
    high: int = NULL


def stats(
    spec: StatsSpec,
    jobs: Mapping[Name, ConversionJob],
    device: Device,
    buffers: Buffers,
    ranges: dict[Name, Range],
    robust: Collection[Name] = (),
) -> Iterator[Launch]:
    """Yield one launch or two.

    Parameters
    ----------
    spec : StatsSpec
    jobs : mapping of {"q", "k", "v"} to ConversionJob
        Means go to the vectors of K and V.
    device : Device
    buffers : Buffers
        Gets what the launches need.
    ranges : dict of {"q", "k", "v"} to Range
        Gets those of the jobs that have one.
    robust : collection of {"k", "v"}
        Whose mean limits groups of tokens that stand out.
    """
    arguments: dict[str, Any] = dict.fromkeys(("q", "k", "v"))
    grid = heads_in_parts = 0
    for name, job in jobs.items():
        heads = job.operand.heads
        nbytes = vector_bytes(job.operand)
        if spec.ranges(name):
            ranges[name] = Range(buffers.take(nbytes), buffers.take(nbytes))
        chunks = spec.chunks(name, job.operand.tokens)
        partial = NULL
        if chunks > 1:
            partial = buffers.take(4 * heads * chunks * spec.kinds(name) * spec.head_dim)
            heads_in_parts += heads
        arguments[name] = {
            **source(job),
            "heads": heads,
            # A mean that nobody wants is computed all the same; Q's vectors are those of blocks.
            "mean": (name != "q" and job.vector) or buffers.take(nbytes),
            **ranges.get(name, Range())._asdict(),
            "partial": partial,
            "chunk": spec.tokens(name, job.operand.tokens),
            "chunks": chunks,
            "robust": name in robust,
            "most": spec.most(name),
        }
        grid += heads * chunks
    arguments["head_dim"] = next(iter(jobs.values())).operand.shape[3]
    yield Launch(spec, device, (grid,), arguments)
    if heads_in_parts:
        yield Launch(spec.finish, device, (heads_in_parts,), arguments)
