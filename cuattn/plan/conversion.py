"""The launches that make operands of the products from arrays: statistics, then codes or values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..operands.operand import compact
from ..reference.layout import pad_head_dim
from ..scheme import Scheme
from ..specs.attention import Type
from ..specs.coding import Name
from ..specs.quantize import QuantizeSpec
from ..specs.rotate import RotateSpec
from ..specs.smoothing import BlockMeansSpec
from ..specs.stats import StatsSpec
from .item import Item, source
from .kernels import needs_stats, rotates_values
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
    items: Mapping[Name, Item],
    scheme: Scheme,
    device: Device,
    buffers: Buffers,
    *,
    shift: Shift | None = None,
    next_item: int = NULL,
    packed_qk: bool = False,
    packed_v: bool = False,
) -> list[Launch]:
    """Return the launches, in order, that convert some of Q, K and V.

    Parameters
    ----------
    items : mapping of {"q", "k", "v"} to Item
        Arrays of one type and head_dim, none of them empty.
    scheme : Scheme
    device : Device
    buffers : Buffers
        Gets the parts of the workspace that are needed in between.
    shift : Shift, optional
        Of Q, if it is among the items.
    next_item : int
        Number of the counter of the attention kernel, which is set to 0, or null.
    packed_qk, packed_v : bool
        Whether codes of 4 bits are stored two to a byte.
    """
    if not items:
        return []
    first = next(iter(items.values())).operand
    aligned = all(item.operand.aligned for item in items.values())
    built_for = (scheme, first.dtype, pad_head_dim(first.shape[3]), aligned)

    launches: list[Launch] = []
    ranges: dict[Name, Range] = {}
    wanted: dict[Name, Item] = {x: items[x] for x in needs_stats(scheme) if x in items}
    if wanted:
        launches += stats(StatsSpec.of(*built_for), wanted, device, buffers, ranges)
    if "q" in items and scheme.smooth_q != "none":
        launches.append(_block_means(items["q"], device))
    at_once = dict(items)
    rotated = at_once.pop("v", None) if rotates_values(scheme) else None
    if at_once:
        spec = QuantizeSpec.of(*built_for, packed_qk=packed_qk, packed_v=packed_v)
        launches.append(_quantize(spec, at_once, device, ranges, next_item, shift))
    if rotated is not None:
        launches += _rotated_values(rotated, scheme, device, buffers, next_item, packed_v)
    return launches


def _quantize(
    spec: QuantizeSpec,
    items: Mapping[Name, Item],
    device: Device,
    ranges: Mapping[Name, Range],
    next_item: int,
    shift: Shift | None = None,
) -> Launch:
    arguments: dict[str, Any] = dict.fromkeys(_NAMES)
    grid = 0
    for name, item in items.items():
        heads, tiles = item.operand.heads, spec.tiles(name, item.operand.tokens)
        grid += heads * tiles
        arguments[name] = {
            **source(item),
            "out": item.data,
            "scale": item.scale,
            "vector": item.vector,
            **ranges.get(name, Range())._asdict(),
            "heads": heads,
            "tiles": tiles,
        }
    arguments |= {
        "lse_shift": shift.rows if shift else NULL,
        "k_vector": shift.vector if shift else NULL,
        "next_item": next_item,
        "head_dim": next(iter(items.values())).operand.shape[3],
        "heads_per_kv": shift.group if shift else 1,
        "softmax_scale": shift.softmax_scale if shift else 0.0,
    }
    return Launch(spec, device, (grid,), arguments)


def _block_means(item: Item, device: Device) -> Launch:
    """Return the launch that computes what smoothing subtracts from blocks of Q."""
    q = item.operand
    spec = BlockMeansSpec(q.dtype, pad_head_dim(q.shape[3]), q.aligned)
    blocks = spec.blocks(q.tokens)
    values = {**source(item), "mean": item.vector, "head_dim": q.shape[3], "blocks": blocks}
    return Launch(spec, device, (q.heads * blocks,), values)


def _rotated_values(
    item: Item, scheme: Scheme, device: Device, buffers: Buffers, next_item: int, packed: bool
) -> list[Launch]:
    """Return the launches that rotate V, once its vector is known, and quantize the result."""
    v = item.operand
    head_dim = v.shape[3]
    channels = pad_head_dim(head_dim)
    spec = RotateSpec(v.dtype, channels, v.aligned)
    tiles = spec.tiles(v.tokens)
    out = buffers.take(4 * v.heads * v.tokens * head_dim)
    values = {
        **source(item),
        "vector": item.vector,
        "out": out,
        "head_dim": head_dim,
        "tiles": tiles,
    }
    launches = [Launch(spec, device, (v.heads * tiles,), values)]
    result: dict[Name, Item] = {
        "v": Item(compact(v.shape, Type.fp32), out, data=item.data, scale=item.scale)
    }
    ranges: dict[Name, Range] = {}
    if scheme.v_scope in ("channel", "tensor"):
        launches += stats(StatsSpec.of_rotated_values(channels), result, device, buffers, ranges)
    quantize = QuantizeSpec.of_rotated_values(scheme, channels, packed)
    return [*launches, _quantize(quantize, result, device, ranges, next_item)]
