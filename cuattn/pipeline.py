"""The launches of one attention call: conversion of what needs it, then attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from .conversion import Item, conversion
from .device import current_device, target
from .form import Form
from .launch import NULL, Buffers, Launch
from .operand import Name, Operand
from .plan import attention_spec, half_type
from .problem import Problem
from .reference.layout import pad_head_dim
from .tensor_map import can_map
from .tiles_of import tensor_maps
from .wgmma_spec import WgmmaSpec

__all__ = ["GIVEN", "pipeline"]

_NAMES: tuple[Name, ...] = ("q", "k", "v")

# What an operand's three addresses are: an array or codes, their scales, and K's or V's vector.
_PARTS = ("", "_scale", "_vector")

# The addresses that a call has from outside: see `Buffers`.
GIVEN = (*(name + part for name in _NAMES for part in _PARTS), "o", "lse", "lse_shift")


def pipeline(problem: Problem, o_strides: tuple[int, ...], buffers: Buffers) -> list[Launch]:
    """Return the launches of a call, in order, for CuPy's current device.

    Parameters
    ----------
    problem : Problem
        Of which no array is empty, and whose arrays' last axes are contiguous.
    o_strides : tuple of int
        Strides of the output in elements, axes [batch, head, token, head_dim].
    buffers : Buffers
        Of the addresses `GIVEN`; gets the parts of the workspace. "lse_shift" is read only if Q is
        quantized already.
    """
    scheme, device = problem.scheme, current_device()
    head_dim = problem.q.shape[3]
    padded = pad_head_dim(head_dim)
    spec = attention_spec(scheme, padded, problem.q.dtype, problem.is_causal, target(device.arch))
    mapped = isinstance(spec, WgmmaSpec)
    places = {name: _place(name, problem, buffers, mapped) for name in _NAMES}
    items = {name: place.made_by for name, place in places.items() if place.made_by is not None}
    lse_shift = made_shift = NULL
    if problem.return_lse and scheme.smooth_k != "none":
        if "q" in items:
            lse_shift = made_shift = buffers.take(4 * problem.q.heads * problem.q.tokens)
            items["q"] = replace(items["q"], vector=places["k"].vector)
        else:
            lse_shift = buffers["lse_shift"]
    launches = conversion(
        items,
        scheme,
        device,
        buffers,
        lse_shift=made_shift,
        group=problem.group,
        softmax_scale=problem.softmax_scale,
    )
    row_blocks = -(-problem.q.tokens // spec.rows)
    arguments: dict[str, float] = {
        "o": buffers["o"],
        "lse": buffers["lse"],
        "v_mean": places["v"].vector if scheme.smooth_v != "none" else NULL,
        "lse_shift": lse_shift,
        "num_q_heads": problem.q.shape[1],
        "heads_per_kv": problem.group,
        "seqlen_q": problem.q.tokens,
        "seqlen_kv": problem.k.tokens,
        "head_dim": head_dim,
        "row_blocks": row_blocks,
        "scale_log2": problem.softmax_scale * math.log2(math.e),
    }
    for name, place in places.items():
        arguments |= {name: place.data, f"{name}_scale": place.scale}
        arguments |= _strides(name, place.strides)
    arguments |= _strides("o", o_strides)
    if isinstance(spec, WgmmaSpec):
        items = row_blocks * problem.q.heads
        maps = tensor_maps(spec, problem, {name: (place.data, place.strides) for name, place in places.items()})
        attend = Launch(spec, device, (min(items, device.num_sms),), {**maps, "attention": arguments, "items": items})
    else:
        # See Work in kernels_cu/attn/work.cuh.
        grid = (row_blocks * problem.group, problem.k.shape[1], problem.k.shape[0])
        attend = Launch(spec, device, grid, arguments)
    return [*launches, attend]


class _Place(NamedTuple):
    """Where the attention kernel finds an operand: numbers of `Buffers`, and strides in bytes."""

    data: int
    strides: tuple[int, ...]
    scale: int
    vector: int
    made_by: Item | None


def _place(name: Name, problem: Problem, buffers: Buffers, mapped: bool) -> _Place:
    operand: Operand = getattr(problem, name)
    scheme = problem.scheme
    form = Form.of(scheme, name, operand.shape)
    x, scale, vector = (buffers[f"{name}{part}"] for part in _PARTS)
    if operand.coded:
        return _Place(x, form.byte_strides, scale, vector, None)
    if form.code is None and operand.direct and operand.dtype is half_type(scheme, operand.dtype):
        itemsize = operand.dtype.nbytes
        strides = tuple(step * itemsize for step in operand.strides)
        if not mapped or can_map(operand.shape[::-1], strides[2::-1], 16, itemsize):
            return _Place(x, strides, NULL, NULL, None)
    item = Item(
        operand,
        x,
        data=buffers.take(form.nbytes),
        scale=buffers.take(4 * math.prod(form.scale)) if form.scale else NULL,
        vector=buffers.take(4 * math.prod(form.vector)) if form.smoothed else NULL,
    )
    return _Place(item.data, form.byte_strides, item.scale, item.vector, item)


def _strides(name: str, strides: tuple[int, ...]) -> dict[str, int]:
    axes = ("batch", "head", "row")
    return {f"{name}_stride_{axis}": step for axis, step in zip(axes, strides[:3], strict=True)}
