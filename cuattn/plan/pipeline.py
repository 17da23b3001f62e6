"""The launches of one attention call: conversion of what needs it, then attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..arrays.device import Device, current_device, target
from ..common.sizes import ceil_div, round_up
from ..compile.launch import NULL, Buffers, Launch
from ..operands.layout import CodeLayout
from ..operands.problem import Problem
from ..operands.score_arrays import MOD_NAMES, OPTION_NAMES
from ..reference.layout import pad_head_dim
from ..specs.attention import AttentionSpec, Scope, Type
from ..specs.coding import Name
from ..specs.quantize import TOKEN_PAD
from ..specs.wgmma import WgmmaSpec
from .conversion import Shift, conversion
from .deltas import deltas
from .kernels import AnyAttentionSpec, attention_spec
from .kernels_sm90 import INTEGER_O_KEYS
from .operand_buffers import PARTS, OperandBuffers, operand_buffers, stored_shape, unpacking
from .score_rules import needs_lse_shift, rules_of, score_arguments
from .sequences import Units, list_units, most_items, sequence_arguments
from .tensor_maps import Source, operand_maps

__all__ = ["GIVEN", "pipeline"]

_NAMES: tuple[Name, ...] = ("q", "k", "v")

# The addresses that a call has from outside: see `Buffers`.
GIVEN = (
    *(name + part for name in _NAMES for part in PARTS),
    "o",
    "lse",
    "lse_shift",
    "k_values",
    "order",
    *OPTION_NAMES,
    *MOD_NAMES,
    "mask_map",
)

# Query heads that are enough to even out the lengths of their rows under a mask, and what their K
# and V may have of the L2 cache, in bytes.
_HEADS_TO_MIX = 16
_CACHED = 32 * 2**20

# CTAs along the third axis of a grid.
_MAX_GRID_Z = 2**16 - 1


def pipeline(
    problem: Problem,
    o_strides: tuple[int, ...],
    buffers: Buffers,
    channels: int | None = None,
) -> list[Launch]:
    """Return the launches of a call, in order, for CuPy's current device.

    Parameters
    ----------
    problem : Problem
        Of which no array is empty, and whose arrays' last axes are contiguous.
    o_strides : tuple of int
        Strides of the output in elements, axes [batch, head, token, head_dim].
    buffers : Buffers
        Of the addresses `GIVEN`; gets the parts of the workspace. "lse_shift" is read only if Q is
        quantized already, "k_values", which is K in float32, if Q is smoothed and K quantized,
        "order", which may be null, if keys are sorted and K or V is quantized, "mask_map" if the
        mask is a `BlockMask`.
    channels : int, optional
        Those of the output, if V, which is quantized already, is padded.
    """
    scheme, device = problem.scheme, current_device()
    head_dim, head_dim_v = problem.q.shape[3], problem.v.shape[3]
    spec = attention_spec(
        scheme,
        pad_head_dim(head_dim),
        problem.q.dtype,
        problem.is_causal,
        target(device.arch),
        long_kv=problem.seqlen_kv > INTEGER_O_KEYS,
        rules=rules_of(problem),
        head_dim_v=None if head_dim_v == head_dim else pad_head_dim(head_dim_v),
    )
    mapped, packed_qk = isinstance(spec, WgmmaSpec), spec.qk is Type.int4
    operands: dict[Name, OperandBuffers] = {}
    for name in _NAMES:
        packed = packed_qk and name != "v"
        operands[name] = operand_buffers(name, problem, buffers, mapped=mapped, packed=packed)
    jobs = {name: where.made_by for name, where in operands.items() if where.made_by is not None}
    order = NULL
    if scheme.k_scope == "sorted":
        given = operands["k"].made_by is None or operands["v"].made_by is None
        codes = CodeLayout.of(scheme, "k", stored_shape("k", problem))
        order = buffers["order"] if given else buffers.take(math.prod(codes.order))
    shift, lse_shift = None, NULL
    if needs_lse_shift(problem):
        lse_shift = buffers["lse_shift"]
        if "q" in jobs:
            lse_shift = buffers.take(4 * problem.q.heads * problem.q.tokens)
            shift = Shift(lse_shift, operands["k"].vector, problem.group, problem.softmax_scale)
    row_blocks = ceil_div(problem.seqlen_q, spec.rows)
    # CTAs of Hopper take one item after the other: Item in kernels_cu/sm90/group_work.cuh.
    items = most_items(problem, spec.rows)
    counted = mapped and items > device.num_sms
    next_item = buffers.take(4) if counted else NULL
    launches = conversion(
        jobs,
        scheme,
        device,
        buffers,
        shift=shift,
        order=order,
        next_item=next_item,
        packed_qk=packed_qk,
    )
    units = None
    if mapped and problem.is_packed:
        units, launch = list_units(problem, spec.rows, next_item, buffers, device)
        launches.append(launch)
    elif counted and not jobs:
        buffers.clear(next_item, 4)
    for name, where in operands.items():
        launches += unpacking(name, where, problem, device)
    delta = NULL
    if scheme.smooth_q != "none":
        means, k_vector = operands["q"].vector, operands["k"].vector
        delta, launch = deltas(problem, means, k_vector, buffers, device)
        launches.append(launch)
    of_scores, launch_scores = score_arguments(problem, buffers, device)
    launches += launch_scores
    twin = 2.0**scheme.p_split
    arguments: dict[str, Any] = {
        "o": buffers["o"],
        "lse": buffers["lse"],
        "v_mean": operands["v"].vector if scheme.smooth_v != "none" else NULL,
        "lse_shift": lse_shift,
        "delta": delta,
        "order": order,
        "num_q_heads": problem.q.shape[1],
        "heads_per_kv": problem.group,
        "seqlen_q": problem.seqlen_q,
        "seqlen_kv": problem.seqlen_kv,
        "head_dim": head_dim,
        "head_dim_v": head_dim_v if channels is None else channels,
        "row_blocks": row_blocks,
        "first_batch": 0,
        "scale_log2": problem.softmax_scale * math.log2(math.e),
        "twin": twin,
        "inverse_twin": 1.0 / twin,
        **of_scores,
        **sequence_arguments(problem, buffers),
    }
    for name, where in operands.items():
        arguments |= {name: where.data, f"{name}_scale": where.scale}
        arguments |= _strides(name, where.strides)
    arguments |= _strides("o", o_strides)
    if problem.is_packed:
        arguments |= {f"{name}_stride_batch": 0 for name in (*_NAMES, "o")}
    return [*launches, *_attend(spec, device, problem, operands, arguments, next_item, units)]


def _attend(
    spec: AnyAttentionSpec,
    device: Device,
    problem: Problem,
    operands: Mapping[Name, OperandBuffers],
    arguments: Mapping[str, Any],
    next_item: int,
    units: Units | None,
) -> list[Launch]:
    """Return the launch of the attention kernel, or several; both families take `arguments`."""
    row_blocks = int(arguments["row_blocks"])
    if isinstance(spec, AttentionSpec):
        # See Work in kernels_cu/attn/work.cuh. One launch has as many batches as a grid.
        batch, heads = problem.batch, problem.k.shape[1]
        return [
            Launch(
                spec,
                device,
                (row_blocks * problem.group * spec.v_parts, heads, min(batch - first, _MAX_GRID_Z)),
                {**arguments, "first_batch": first},
            )
            for first in range(0, batch, _MAX_GRID_Z)
        ]
    sources: dict[Name, Source] = {
        name: Source(stored_shape(name, problem), where.strides, where.data)
        for name, where in operands.items()
    }
    if spec.k_scope is Scope.sorted:  # tokens lie anywhere in their blocks
        batch, heads, tokens, head_dim = stored_shape("k", problem)
        padded = (batch, heads, round_up(tokens, TOKEN_PAD), head_dim)
        sources["k"] = sources["k"]._replace(shape=padded)
    items = most_items(problem, spec.rows)
    values = {
        **operand_maps(spec, sources),
        "attention": arguments,
        "next_item": next_item,
        "items": items,
        "heads_at_a_time": _heads_at_a_time(spec, problem),
        "units": units.entries if units else NULL,
        "unit_count": units.number if units else NULL,
    }
    return [Launch(spec, device, (min(items, device.num_sms),), values)]


def _heads_at_a_time(spec: WgmmaSpec, problem: Problem) -> int:
    """Query heads whose items come in one order of length; without a mask all are as long."""
    if not problem.is_causal:
        return problem.group
    token = spec.head_dim * spec.qk.nbytes + spec.head_dim_v * spec.pv.nbytes
    fit = _CACHED // (token * problem.seqlen_kv)
    return problem.group * max(1, min(fit, _HEADS_TO_MIX // problem.group))


def _strides(name: str, strides: tuple[int, ...]) -> dict[str, int]:
    axes = ("batch", "head", "row")
    return {f"{name}_stride_{axis}": step for axis, step in zip(axes, strides[:3], strict=True)}
