"""The launches of one attention call: conversion of what needs it, then attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from .conversion import Item, conversion
from .device import Device, current_device, target
from .form import Form
from .launch import NULL, Buffers, Clear, Launch
from .operand import Name, Operand
from .operand_maps import Source, can_read, operand_maps
from .plan import AnyAttentionSpec, attention_spec, half_type
from .problem import Problem
from .reference.layout import pad_head_dim
from .sizes import ceil_div
from .spec import AttentionSpec
from .wgmma_plan import INTEGER_O_KEYS
from .wgmma_spec import WgmmaSpec

__all__ = ["GIVEN", "pipeline"]

_NAMES: tuple[Name, ...] = ("q", "k", "v")

# What an operand's three addresses are: an array or codes, their scales, and K's or V's vector.
_PARTS = ("", "_scale", "_vector")

# The addresses that a call has from outside: see `Buffers`.
GIVEN = (*(name + part for name in _NAMES for part in _PARTS), "o", "lse", "lse_shift")

# Query heads that are enough to even out the lengths of their rows under a mask, and what their K
# and V may have of the L2 cache, in bytes.
_HEADS_TO_MIX = 16
_CACHED = 32 * 2**20


def pipeline(
    problem: Problem, o_strides: tuple[int, ...], buffers: Buffers
) -> list[Launch | Clear]:
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
    spec = attention_spec(
        scheme,
        pad_head_dim(problem.q.shape[3]),
        problem.q.dtype,
        problem.is_causal,
        target(device.arch),
        long_kv=problem.k.tokens > INTEGER_O_KEYS,
    )
    mapped = isinstance(spec, WgmmaSpec)
    places: dict[Name, _Place] = {x: _place(x, problem, buffers, mapped) for x in _NAMES}
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
    arguments: dict[str, float] = {
        "o": buffers["o"],
        "lse": buffers["lse"],
        "v_mean": places["v"].vector if scheme.smooth_v != "none" else NULL,
        "lse_shift": lse_shift,
        "num_q_heads": problem.q.shape[1],
        "heads_per_kv": problem.group,
        "seqlen_q": problem.q.tokens,
        "seqlen_kv": problem.k.tokens,
        "head_dim": problem.q.shape[3],
        "row_blocks": ceil_div(problem.q.tokens, spec.rows),
        "scale_log2": problem.softmax_scale * math.log2(math.e),
    }
    for name, place in places.items():
        arguments |= {name: place.data, f"{name}_scale": place.scale}
        arguments |= _strides(name, place.strides)
    arguments |= _strides("o", o_strides)
    return [*launches, *_attend(spec, device, problem, places, arguments, buffers)]


class _Place(NamedTuple):
    """Where the attention kernel finds an operand: numbers of `Buffers`, and strides in bytes."""

    data: int
    strides: tuple[int, ...]
    scale: int
    vector: int
    made_by: Item | None


def _place(name: Name, problem: Problem, buffers: Buffers, mapped: bool) -> _Place:
    """Find an operand where it is, or reserve memory for what is made of it.

    Parameters
    ----------
    mapped : bool
        Whether the attention kernel reads it by a tensor map.
    """
    operand: Operand = getattr(problem, name)
    form = Form.of(problem.scheme, name, operand.shape)
    x, scale, vector = (buffers[f"{name}{part}"] for part in _PARTS)
    if operand.coded:
        return _Place(x, form.byte_strides, scale, vector, None)
    as_it_is = form.code is None and operand.dtype is half_type(problem.scheme, operand.dtype)
    if as_it_is and operand.direct and (can_read(operand) or not mapped):
        strides = tuple(step * operand.dtype.nbytes for step in operand.strides)
        return _Place(x, strides[:3], NULL, NULL, None)
    item = Item(
        operand,
        x,
        data=buffers.take(form.nbytes),
        scale=buffers.take(4 * math.prod(form.scale)) if form.scale else NULL,
        vector=buffers.take(4 * math.prod(form.vector)) if form.smoothed else NULL,
    )
    return _Place(item.data, form.byte_strides, item.scale, item.vector, item)


def _attend(
    spec: AnyAttentionSpec,
    device: Device,
    problem: Problem,
    places: Mapping[Name, _Place],
    arguments: Mapping[str, float],
    buffers: Buffers,
) -> list[Launch | Clear]:
    """Return the launches of the attention kernel; both families take `arguments`."""
    row_blocks = ceil_div(problem.q.tokens, spec.rows)
    if isinstance(spec, AttentionSpec):
        # See Work in kernels_cu/attn/work.cuh.
        grid = (row_blocks * problem.group, problem.k.shape[1], problem.k.shape[0])
        return [Launch(spec, device, grid, arguments)]
    sources: dict[Name, Source] = {
        name: Source(getattr(problem, name).shape, place.strides, place.data)
        for name, place in places.items()
    }
    # CTAs take one item after the other: Item in kernels_cu/hopper/group_work.cuh.
    items = row_blocks * problem.q.heads
    counted = items > device.num_sms
    next_item = buffers.take(4) if counted else NULL
    values = {
        **operand_maps(spec, sources),
        "attention": arguments,
        "next_item": next_item,
        "items": items,
        "heads_at_a_time": _heads_at_a_time(spec, problem),
    }
    attend = Launch(spec, device, (min(items, device.num_sms),), values)
    return [Clear(next_item, 4), attend] if counted else [attend]


def _heads_at_a_time(spec: WgmmaSpec, problem: Problem) -> int:
    """Query heads whose items come in one order of length; without a mask all are as long."""
    if not problem.is_causal:
        return problem.group
    token = spec.head_dim * (spec.qk.nbytes + spec.pv.nbytes)
    fit = _CACHED // (token * problem.k.tokens)
    return problem.group * max(1, min(fit, _HEADS_TO_MIX // problem.group))


def _strides(name: str, strides: tuple[int, ...]) -> dict[str, int]:
    axes = ("batch", "head", "row")
    return {f"{name}_stride_{axis}": step for axis, step in zip(axes, strides[:3], strict=True)}
