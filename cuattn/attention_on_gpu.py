"""`cuattn.attention` on arrays of a GPU: look at them, check and plan, launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .arrays.caller import Caller
from .arrays.overlap import check_output
from .arrays.view import (
    View,
    as_cupy,
    as_float32,
    contiguous,
    cupy_module,
    is_finite,
    view_cupy,
)
from .errors import ArgumentError
from .operands.block_mask import BlockMask
from .operands.lengths import NO_LENGTHS, LengthArrays
from .operands.operand import itemsize
from .operands.options import Options
from .operands.quantized import QuantizedTensor
from .operands.score_arrays import NO_ARRAYS, ScoreArrays, addresses_in_order
from .plan.prepared import AttentionCall, prepare
from .plan.repeated import Made
from .quantize import quantize_views
from .specs.coding import Name

__all__ = ["attention_on_gpu"]


class _Seen(NamedTuple):
    """The caller's arrays as the call sees them, by their names."""

    operands: dict[Name, View | QuantizedTensor]
    scores: Mapping[str, View | BlockMask]
    out: View | None


class _Converted(NamedTuple):
    """Arrays that are made before the launches: "lse_shift" and "k_values" of the pipeline."""

    lse_shift: View | None = None
    k_values: View | None = None


_NOTHING = _Converted()


def attention_on_gpu(
    given: Mapping[Name, Any],
    scores: Mapping[str, Any],
    options: Options,
    out: Any,
    finite: bool,
    stream: Any,
) -> Any:
    """Do what `cuattn.attention` says, on the current device.

    Parameters
    ----------
    given : mapping of {"q", "k", "v"} to array or QuantizedTensor
    scores : mapping of str to array or BlockMask
        Those among the options of the caller, by their names, or labels of `Mods`.
    options : Options
    out : array or None
    finite : bool
        Whether NaN and infinities are refused.
    stream : object
        The caller's choice, if there is one.

    Returns
    -------
    array, or tuple of two
        What `cuattn.attention` returns; a `Made` of it if nothing but the launches has been done.
    """
    caller = Caller(given["q"], stream)
    seen = _Seen(
        {
            name: x if isinstance(x, QuantizedTensor) else caller.look(x, name)
            for name, x in given.items()
        },
        {
            name: x if isinstance(x, BlockMask) else caller.look(x, name)
            for name, x in scores.items()
        },
        None if out is None else caller.look(out, "out"),
    )
    call = _planned(seen, options)
    if seen.out is not None:
        _check_output(out, seen.out, seen, call)
    with caller:
        if finite:
            _check_finite(seen, given)
        made, is_plain = _NOTHING, stream is None and not finite
        if call.copied or call.needs_shift or call.needs_keys:
            call, made = _converted(call, seen, options)
            is_plain = False
        o = caller.empty(*call.output) if seen.out is None else seen.out
        lse = None if call.lse is None else caller.empty(*call.lse)
        _launch(call, seen, o, lse, made, caller.stream)
        result = caller.deliver(o) if out is None else out
        if call.lse is not None:
            result = result, caller.deliver(lse)
        return Made(result, call, {}) if is_plain and call.launches and call.writes_out else result


def _planned(seen: _Seen, options: Options) -> AttentionCall:
    operands, scores, out = seen
    q, k, v = operands["q"].signature, operands["k"].signature, operands["v"].signature
    arrays, lengths = NO_ARRAYS, NO_LENGTHS
    if scores:
        signatures: dict[str, Any] = {name: x.signature for name, x in scores.items()}
        arrays, lengths = ScoreArrays.of(signatures), LengthArrays.of(signatures)
    return prepare(q, k, v, None if out is None else out.signature, *options, arrays, lengths)


def _check_output(out: Any, target: View, seen: _Seen, call: AttentionCall) -> None:
    inputs: dict[str, View] = {name: x for name, x in seen.operands.items() if isinstance(x, View)}
    sizes = {}
    for name, x in seen.scores.items():
        view = x.view if isinstance(x, BlockMask) else x
        if view is not None:
            inputs[name], sizes[name] = view, itemsize(view.dtype)
    check_output(out, target, inputs, call.extents, call.problem.q.dtype.nbytes, sizes)


def _check_finite(seen: _Seen, given: Mapping[Name, Any]) -> None:
    for name, x in seen.operands.items():
        # Where a scope holds NaN or an infinity, its scale is not finite.
        if not is_finite(view_cupy(x.scale) if isinstance(x, QuantizedTensor) else x):
            raise ArgumentError(name, given[name], "without NaN and infinity")


def _converted(
    call: AttentionCall, seen: _Seen, options: Options
) -> tuple[AttentionCall, _Converted]:
    """Do first what kernels do not: copy arrays, and compute with what is quantized already."""
    operands = seen.operands
    for name, x in operands.items():
        if name in call.copied and isinstance(x, View):
            operands[name] = contiguous(x)
    scheme = call.problem.scheme
    made = _NOTHING
    q, k, v = operands["q"], operands["k"], operands["v"]
    if call.needs_shift and isinstance(q, QuantizedTensor):
        if not isinstance(k, QuantizedTensor):
            arrays: dict[Name, View] = {"k": k}
            if scheme.k_scope == "sorted" and isinstance(v, View):
                arrays["v"] = v
            quantized = quantize_views(arrays, scheme, call.problem.layout)
            k = quantized["k"]
            # Else the array is still wanted: for its products, or to take the order of V.
            has_order = isinstance(v, QuantizedTensor) and v.order is not None
            if scheme.smooth_q == "none" and not has_order:
                operands |= quantized
        shift = call.problem.softmax_scale * q.dot(k.vector)
        made = made._replace(lse_shift=view_cupy(shift))
    if call.needs_keys and isinstance(k, QuantizedTensor):
        made = made._replace(k_values=view_cupy(k.dequantize()))
    return _planned(seen, options), made


def _launch(
    call: AttentionCall, seen: _Seen, target: View, lse: View | None, made: _Converted, stream: int
) -> None:
    if not call.launches:
        if call.problem.has_rows:
            bounds, sinks = seen.scores.get("cu_seqlens_q"), seen.scores.get("sinks")
            _fill_zeros(target, bounds if isinstance(bounds, View) else None)
            if lse is not None:
                _fill_lse(lse, sinks if isinstance(sinks, View) else None)
        return
    o = target
    if not call.writes_out:
        o = view_cupy(cupy_module().empty_like(as_cupy(target), order="C"))
        if call.problem.is_packed:  # what lies behind the last sequence stays
            as_cupy(o)[...] = as_cupy(target)
    q, k, v = seen.operands["q"], seen.operands["k"], seen.operands["v"]
    given = (
        *_addresses(q),
        *_addresses(k),
        *_addresses(v),
        o.ptr,
        *[0 if view is None else view.ptr for view in (lse, *made)],
        _order_address(k, v),
        *_score_addresses(seen.scores),
    )
    call.launches(given, stream)
    if o is not target:
        as_cupy(target)[...] = o.owner


def _fill_zeros(target: View, bounds: View | None) -> None:
    """Write an output of rows that see no key, but not what lies behind the last sequence."""
    array = as_cupy(target)
    if bounds is None:
        array[...] = 0
        return
    cupy = cupy_module()
    exists = cupy.arange(len(array)) < as_cupy(bounds)[-1]
    array[...] = cupy.where(exists[:, None, None], array.dtype.type(0), array)


def _fill_lse(lse: View, sinks: View | None) -> None:
    """Write the log-sum-exp of rows that see no key: of their sink, if there is one."""
    array = as_cupy(lse)
    if sinks is None:
        array.fill(-np.inf)
    else:
        array[...] = as_float32(sinks)[:, None]


def _order_address(k: View | QuantizedTensor, v: View | QuantizedTensor) -> int:
    """Return where the order of sorted keys is, if K or V is quantized already and has one."""
    known = k if isinstance(k, QuantizedTensor) else v
    return known.order_address if isinstance(known, QuantizedTensor) else 0


def _score_addresses(scores: Mapping[str, View | BlockMask]) -> tuple[int, ...]:
    """Return the addresses of the options' arrays, then that of the map of a `BlockMask`."""
    mask = scores.get("attn_mask")
    given = addresses_in_order({name: x.ptr for name, x in scores.items()})
    return (*given, mask.map_ptr if isinstance(mask, BlockMask) else 0)


def _addresses(x: View | QuantizedTensor) -> tuple[int, int, int]:
    return x.addresses if isinstance(x, QuantizedTensor) else (x.ptr, 0, 0)
