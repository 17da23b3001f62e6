"""The launches that make operands of the products from arrays: statistics, then codes or values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..operands.operand import compact
from ..reference.layout import pad_head_dim
from ..scheme import Scheme
from ..specs.attention import Scope, Type
from ..specs.coding import Name
from ..specs.quantize import QuantizeSpec
from ..specs.rotate import RotateSpec
from ..specs.smoothing import BlockMeansSpec
from ..specs.stats import StatsSpec
from .kernels import needs_stats
from .operand_buffers import ConversionJob, source
from .stats import Range, stats

__all__ = ["Shift", "conversion"]

_NAMES: tuple[Name, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Shift:
    """What smoothing K takes from the logits of each row of Q; fields are numbers of a `Buffers`.

    Parameters
    ----------
    rows : int
        What gets ``softmax_scale * q . vector``.
    vector : int
        K's.
    group : int
        Query heads that share one head of K.
    softmax_scale : float
    """

    rows: int
    vector: int
    group: int
    softmax_scale: float


def conversion(
    jobs: Mapping[Name, ConversionJob],
    scheme: Scheme,
    device: Device,
    buffers: Buffers,
    *,
    shift: Shift | None = None,
    order: int = NULL,
    next_item: int = NULL,
    packed_qk: bool = False,
    packed_v: bool = False,
) -> list[Launch]:
    """Return the launches, in order, that convert some of Q, K and V.

    Parameters
    ----------
    jobs : mapping of {"q", "k", "v"} to ConversionJob
        Arrays of one type, none of them empty; Q and K of one head_dim.
    scheme : Scheme
    device : Device
    buffers : Buffers
        Gets the parts of the workspace that are needed in between.
    shift : Shift, optional
        Of Q, if it is among the jobs.
    order : int
        Number of the order of sorted keys: written if K and V are among the jobs, read if one is.
    next_item : int
        Number of the counter of the attention kernel, which is set to 0, or null.
    packed_qk, packed_v : bool
        Whether codes of 4 bits are stored two to a byte.
    """
    if not jobs:
        return []
    first = next(iter(jobs.values())).operand
    aligned = all(job.operand.aligned for job in jobs.values())
    varlen = any(job.lengths is not None for job in jobs.values())
    built_for = (scheme, first.dtype)

    launches: list[Launch] = []
    ranges: dict[Name, Range] = {}
    wanted: dict[Name, ConversionJob] = {x: jobs[x] for x in needs_stats(scheme) if x in jobs}
    if wanted:
        smoothing = {"q": "none", "k": scheme.smooth_k, "v": scheme.smooth_v}
        robust = [name for name in wanted if smoothing[name] in ("robust", "sample")]
        for part in _of_one_head_dim(wanted):
            spec = StatsSpec.of(*built_for, _padded(part), aligned, varlen)
            launches += stats(spec, part, device, buffers, ranges, robust)
    if "q" in jobs and scheme.smooth_q != "none":
        launches.append(_block_means(jobs["q"], device))
    at_once = dict(jobs)
    rotated = at_once.pop("v", None) if scheme.rotates("v") else None
    if at_once:
        quantize = QuantizeSpec.of(
            *built_for,
            _padded(at_once),
            aligned,
            packed_qk=packed_qk,
            packed_v=packed_v,
            head_dim_v=_padded({"v": at_once["v"]}) if "v" in at_once else None,
            varlen=varlen,
        )
        launches.append(_quantize(quantize, at_once, device, ranges, next_item, shift, order))
    if rotated is not None:
        launches += _rotated_values(rotated, scheme, device, buffers, next_item, packed_v)
    return launches


def _head_dim(jobs: Mapping[Name, ConversionJob]) -> int:
    """Return the head_dim of the first operand, without padding."""
    return next(iter(jobs.values())).operand.shape[3]


def _padded(jobs: Mapping[Name, ConversionJob]) -> int:
    return pad_head_dim(_head_dim(jobs))


def _of_one_head_dim(jobs: Mapping[Name, ConversionJob]) -> list[dict[Name, ConversionJob]]:
    """Return the jobs together, or V apart if its head_dim is another one."""
    if "v" not in jobs or jobs["v"].operand.shape[3] == _head_dim(jobs):
        return [dict(jobs)]
    return [{name: job for name, job in jobs.items() if name != "v"}, {"v": jobs["v"]}]


def _quantize(
    spec: QuantizeSpec,
    jobs: Mapping[Name, ConversionJob],
    device: Device,
    ranges: Mapping[Name, Range],
    next_item: int,
    shift: Shift | None = None,
    order: int = NULL,
) -> Launch:
    arguments: dict[str, Any] = dict.fromkeys(_NAMES)
    all_tiles = 0
    for name, job in jobs.items():
        heads, tiles = job.operand.heads, spec.tiles(name, job.operand.tokens)
        if not (name == "v" and "k" in jobs and spec.k_scope is Scope.sorted):
            all_tiles += heads * tiles  # a CTA that has sorted keys has both
        arguments[name] = {
            **source(job),
            "out": job.data,
            "scale": job.scale,
            "vector": job.vector,
            **ranges.get(name, Range())._asdict(),
            "heads": heads,
            "tiles": tiles,
        }
    arguments |= {
        "lse_shift": shift.rows if shift else NULL,
        "k_vector": shift.vector if shift else NULL,
        "order": order,
        "next_item": next_item,
        "head_dim": _head_dim(jobs),
        "head_dim_v": jobs["v"].operand.shape[3] if "v" in jobs else _head_dim(jobs),
        "heads_per_kv": shift.group if shift else 1,
        "softmax_scale": shift.softmax_scale if shift else 0.0,
    }
    return Launch(spec, device, (spec.ctas(all_tiles, device.num_sms),), arguments)


def _block_means(job: ConversionJob, device: Device) -> Launch:
    """Return the launch that computes what smoothing subtracts from blocks of Q."""
    q = job.operand
    varlen = job.lengths is not None
    spec = BlockMeansSpec(q.dtype, pad_head_dim(q.shape[3]), q.aligned, varlen)
    blocks = spec.blocks(q.tokens)
    values = {**source(job), "mean": job.vector, "head_dim": q.shape[3], "blocks": blocks}
    return Launch(spec, device, (q.heads * blocks,), values)


def _rotated_values(
    job: ConversionJob,
    scheme: Scheme,
    device: Device,
    buffers: Buffers,
    next_item: int,
    packed: bool,
) -> list[Launch]:
    """Return the launches that rotate V, once its vector is known, and quantize the result."""
    v, lengths = job.operand, job.lengths
    head_dim = v.shape[3]
    channels = pad_head_dim(head_dim)
    spec = RotateSpec(v.dtype, channels, v.aligned, varlen=lengths is not None)
    tiles = spec.tiles(v.tokens)
    made = compact(v.shape, Type.fp32)
    if lengths is not None:
        # Tokens of sequences that lie end to end do so again.
        batch = 1 if lengths.cu_seqlens != NULL else v.shape[0]
        strides = compact((batch, v.shape[1], lengths.total, head_dim), Type.fp32).strides
        made = replace(made, strides=(0 if batch == 1 else strides[0], *strides[1:]))
        out = buffers.take(4 * batch * strides[0])
    else:
        out = buffers.take(4 * v.heads * v.tokens * head_dim)
    values = {
        **source(job),
        "vector": job.vector,
        "out": out,
        "head_dim": head_dim,
        "tiles": tiles,
    }
    launches = [Launch(spec, device, (v.heads * tiles,), values)]
    result: dict[Name, ConversionJob] = {
        "v": ConversionJob(made, out, data=job.data, scale=job.scale, lengths=lengths)
    }
    ranges: dict[Name, Range] = {}
    if scheme.v_scope in ("channel", "tensor"):
        of_range = StatsSpec.of_rotated_values(channels, lengths is not None)
        launches += stats(of_range, result, device, buffers, ranges)
    quantize = QuantizeSpec.of_rotated_values(scheme, channels, packed, lengths is not None)
    return [*launches, _quantize(quantize, result, device, ranges, next_item)]
