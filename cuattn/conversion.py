"""The launches that make operands of the products from arrays: statistics, then codes or values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .device import Device
from .launch import NULL, Buffers, Launch
from .operand import Name, Operand
from .plan import needs_stats
from .quantize_spec import QuantizeSpec, StatsSpec
from .reference.layout import pad_head_dim
from .scheme import Scheme

__all__ = ["Item", "conversion"]

_NAMES: tuple[Name, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Item:
    """An array to convert; all but the first field are numbers of a `Buffers`.

    Parameters
    ----------
    operand : Operand
    x : int
        The array.
    data, scale : int
        Where codes and scales go, or values.
    vector : int
        K, V: where the smoothing vector goes. Q: K's vector, if there is an lse_shift.
    """

    operand: Operand
    x: int
    data: int
    scale: int = NULL
    vector: int = NULL


def conversion(
    items: Mapping[Name, Item],
    scheme: Scheme,
    device: Device,
    buffers: Buffers,
    *,
    lse_shift: int = NULL,
    group: int = 1,
    softmax_scale: float = 0.0,
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
    lse_shift : int
        Number of the buffer that gets ``softmax_scale * q . vector``, or null.
    group : int
        Query heads that share one head of K.
    softmax_scale : float
    """
    if not items:
        return []
    first = next(iter(items.values())).operand
    aligned = all(item.operand.aligned for item in items.values())
    built_for = (scheme, first.dtype, pad_head_dim(first.shape[3]), aligned)

    launches: list[Launch] = []
    ranges: dict[Name, _Range] = {}
    wanted: dict[Name, Item] = {x: items[x] for x in needs_stats(scheme) if x in items}
    if wanted:
        spec = StatsSpec.of(*built_for)
        for name, item in wanted.items():
            if spec.ranges(name):
                nbytes = _vector_bytes(item.operand)
                ranges[name] = _Range(buffers.take(nbytes), buffers.take(nbytes))
        launches += _stats(spec, wanted, device, buffers, ranges)

    quantize = QuantizeSpec.of(*built_for)
    arguments: dict[str, Any] = {
        name: _quantized(quantize, items, name, ranges.get(name, _Range())) for name in _NAMES
    }
    arguments |= {
        "lse_shift": lse_shift,
        "head_dim": first.shape[3],
        "heads_per_kv": group,
        "softmax_scale": softmax_scale,
    }
    grid = sum(x["heads"] * x["tiles"] for x in map(arguments.get, _NAMES) if x)
    launches.append(Launch(quantize, device, (grid,), arguments))
    return launches


class _Range(NamedTuple):
    """Where the smallest and largest elements of an operand's channels are."""

    low: int = NULL
    high: int = NULL


def _quantized(
    spec: QuantizeSpec, items: Mapping[Name, Item], name: Name, range_: _Range
) -> dict[str, Any] | None:
    if name not in items:
        return None
    item = items[name]
    return {
        **_source(item),
        "out": item.data,
        "scale": item.scale,
        "vector": item.vector,
        **range_._asdict(),
        "tiles": spec.tiles(name, item.operand.tokens),
    }


def _stats(
    spec: StatsSpec,
    items: Mapping[Name, Item],
    device: Device,
    buffers: Buffers,
    ranges: Mapping[Name, _Range],
) -> Iterator[Launch]:
    arguments: dict[str, Any] = dict.fromkeys(_NAMES)
    grid = heads_in_parts = 0
    for name, item in items.items():
        heads = item.operand.heads
        chunks = spec.chunks(name, item.operand.tokens)
        partial = NULL
        if chunks > 1:
            partial = buffers.take(4 * heads * chunks * spec.kinds(name) * spec.head_dim)
            heads_in_parts += heads
        arguments[name] = {
            **_source(item),
            # A mean that nobody wants is computed all the same; Q's vector is that of K.
            "mean": (name != "q" and item.vector) or buffers.take(_vector_bytes(item.operand)),
            **ranges.get(name, _Range())._asdict(),
            "partial": partial,
            "chunk": spec.chunk,
            "chunks": chunks,
        }
        grid += heads * chunks
    arguments["head_dim"] = next(iter(items.values())).operand.shape[3]
    yield Launch(spec, device, (grid,), arguments)
    if heads_in_parts:
        yield Launch(spec.finish, device, (heads_in_parts,), arguments)


def _source(item: Item) -> dict[str, int]:
    """Return the members that StatsOperand and QuantizeOperand have in common."""
    operand = item.operand
    batch, head, token = operand.strides[:3]
    return {
        "x": item.x,
        "stride_batch": batch,
        "stride_head": head,
        "stride_token": token,
        "heads": operand.heads,
        "num_heads": operand.shape[1],
        "seqlen": operand.tokens,
    }


def _vector_bytes(operand: Operand) -> int:
    return 4 * operand.heads * operand.shape[3]
