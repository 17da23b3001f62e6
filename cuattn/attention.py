"""`attention`: look at the arrays, check and plan, launch."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .arrays.caller import Caller, device_of, on_device
from .arrays.overlap import check_output
from .arrays.view import (
    CPU,
    CUDA,
    View,
    as_cupy,
    as_float32,
    contiguous,
    cupy_module,
    is_finite,
    view_cupy,
)
from .common.public import public
from .emulation.attention import attention_on_host
from .errors import ArgumentError
from .operands.pairs import check_orders
from .operands.problem import Options, check_flag
from .operands.quantized import QuantizedTensor
from .operands.scores import (
    ALL_KEYS,
    NO_ARRAYS,
    SCORE_NAMES,
    ScoreArrays,
    ScoreName,
    checked_window,
    itemsize,
)
from .plan.prepared import AttentionCall, prepare
from .plan.repeated import repetition
from .quantize import quantize_views
from .scheme import Scheme
from .specs.coding import Name

__all__ = ["attention"]

# Arrays as the call sees them, by their names.
Seen: TypeAlias = dict[Name, View | QuantizedTensor]
SeenScores: TypeAlias = dict[ScoreName, View]


@public
def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    is_causal: bool = False,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    sinks: Any = None,
    attn_mask: Any = None,
    alibi_slopes: Any = None,
    scale: float | None = None,
    scheme: str | Scheme = "int8",
    layout: str = "HND",
    return_lse: bool = False,
    out: Any = None,
    check_finite: bool = False,
    stream: Any = None,
) -> Any:
    """Compute ``softmax(scale * q kᵀ) v`` with quantized operands.

    Parameters
    ----------
    q : array [batch, num_q_heads, seqlen_q, head_dim], or QuantizedTensor
    k, v : array [batch, num_kv_heads, seqlen_kv, head_dim], or QuantizedTensor
        With layout "NHD" tokens come before heads. float16, bfloat16 or float32, all arrays of one
        type. `head_dim` is a multiple of 8 up to 256, `num_q_heads` one of `num_kv_heads`; lengths
        may be 0. Arrays of CuPy, PyTorch, JAX or anything else with ``__dlpack__`` on one GPU, or
        arrays in host memory, for which the scheme is emulated in NumPy. They are never written to.
        A tensor of PyTorch is dense and strided, and requires no gradients unless they are off.
        An array whose last axis is not contiguous is copied first, and so is one for an unquantized
        product if it does not begin its rows at multiples of 16 bytes.
    is_causal : bool
        Hide key j from row i if ``j > i + seqlen_kv - seqlen_q``: the last row sees every key.
    scale : float, optional
        Factor of the logits, ``1/sqrt(head_dim)`` by default.
    scheme : str or Scheme
        A key of `cuattn.PRESETS` or a scheme of your own. A QuantizedTensor must have been made for
        a scheme that quantizes that operand alike, and K and V of sorted keys by one call of
        `cuattn.quantize_kv`, or one by one by `cuattn.quantize`. "auto" is the faster one of "fp16"
        and "int8", "auto-block" the fastest of these and "int8-block", for this GPU, shape and mask
        by a table of times: `cuattn.auto_scheme` says which and why. Both take arrays only, and in
        host memory are "int8" and "int8-block".
    layout : {"HND", "NHD"}
        Order of the axes of arrays, `out` included; a QuantizedTensor has none.
    return_lse : bool
        Return the log-sum-exp of the logits too. If `q` is a QuantizedTensor and the scheme smooths
        K, this takes memory for `q` in float32 for a while.
    out : array, optional
        Written and returned: of any library but JAX, whose arrays are immutable, with shape, type
        and device of `q`, overlapping no input, and requiring no gradients. One whose rows are not
        contiguous or begin at odd elements is written by a copy.
    check_finite : bool
        Raise for NaN and infinities in the arrays. This waits for the GPU.
    stream : int or stream, optional
        Where the work is enqueued: an address, or an object with ``__cuda_stream__``, ``ptr`` or
        ``cuda_stream``. By default PyTorch's current stream if `q` is its tensor, else CuPy's.

    Returns
    -------
    o : array with the shape and type of `q`
        `out` if given; else of PyTorch or JAX if `q` is, and otherwise of CuPy on a GPU and of
        NumPy in host memory. A row that sees no key is 0.
    lse : array of float32 [batch, num_q_heads, seqlen_q]
        Only with `return_lse`. Natural logarithm, -inf for a row that sees no key.

    Raises
    ------
    ArgumentError
        If an argument is wrong: it names the argument, and nothing has been launched or written.
        Of an unknown keyword it says which was meant, and is a TypeError too.
    NoGPUError
        If arrays are on a GPU that CuPy cannot use.
    UnsupportedError
        If the GPU, the driver or the compiler is too old.
    CompileError
        If the compiler is missing or fails.

    Notes
    -----
    NaN and infinities act as far as the scheme's scales reach; an infinity, which has no code of 8
    bits, acts like NaN. In a row of Q it makes that row NaN, and those that share its scale. In a
    key it does so to every row that sees the key or another one that shares its scale. With one
    scale for a head, in Q or K, it does so to all rows of the head. In V it does so, with a scale
    per token, to every row that sees the token (on the GPU, to their lse too), per block, to every
    row that sees any of its tokens; else to the channel or, with one scale, to all of the output.
    Rotated, it is that of all channels that are rotated together. Means leave such elements out.
    Unquantized operands follow IEEE arithmetic, except that in V they, and a scale per block, may
    also reach rows up to a tile before the first one that sees the token.

    If Q is smoothed and K is a QuantizedTensor, what smoothing took from the scores is worked out
    with the values that K's codes stand for: with 4 bits the result is a little less accurate.

    In a function that `torch.compile` compiles, a call breaks the graph and runs as it is.

    On the GPU nothing waits for the GPU, and all memory is CuPy's, except for outputs in PyTorch's.
    A call can be captured into a CUDA graph after one call of its kind, which loads the kernels.
    What a captured call uses as workspace is free again for others when it returns, so capture with
    an allocator of its own and keep it as long as the graph::

        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            ...  # capture
    """
    given: dict[Name, Any] = {"q": q, "k": k, "v": v}
    arrays = {"sinks": sinks, "alibi_slopes": alibi_slopes, "attn_mask": attn_mask}
    scores: dict[Any, Any] = {name: x for name, x in arrays.items() if x is not None}
    window = checked_window(window_size)
    options = Options(scheme, scale, is_causal, return_lse, layout, window, softcap)
    if check_finite is not False:
        check_flag("check_finite", check_finite)
    check_orders(k, v)
    kind, ordinal = q.device if isinstance(q, QuantizedTensor) else device_of(q, "q")
    if kind == CUDA:
        with on_device(ordinal):
            o, lse = _attention_on_gpu(given, scores, options, out, check_finite, stream)
    elif kind != CPU:
        raise ArgumentError("q", q, "on an NVIDIA GPU or in host memory")
    elif stream is not None:
        raise ArgumentError("stream", stream, "None for arrays in host memory")
    else:
        o, lse = attention_on_host(given, scores, options, out, check_finite)
    return (o, lse) if return_lse else o


def _attention_on_gpu(
    given: dict[Name, Any],
    scores: dict[ScoreName, Any],
    options: Options,
    out: Any,
    check_finite: bool,
    stream: Any,
) -> tuple[Any, Any]:
    """Attend on the current device: look at the arrays, check and plan, launch."""
    caller = Caller(given["q"], stream)
    again = None
    if caller.is_torchs and not check_finite:
        again = repetition(given.values(), scores, options, out)
        if again is not None and again.call is not None:
            return again.run(again.call, caller)
    seen: Seen = {
        name: x if isinstance(x, QuantizedTensor) else caller.look(x, name)
        for name, x in given.items()
    }
    looked: SeenScores = {name: caller.look(x, name) for name, x in scores.items()}
    target = None if out is None else caller.look(out, "out")
    call = _planned(seen, looked, target, options)
    if target is not None:
        arrays: dict[str, View] = {name: x for name, x in seen.items() if isinstance(x, View)}
        sizes = {name: itemsize(x.dtype) for name, x in looked.items()}
        nbytes = call.problem.q.dtype.nbytes
        check_output(out, target, {**arrays, **looked}, call.extents, nbytes, sizes)
    with caller:
        if check_finite:
            _check_finite(seen, given)
        made = _NOTHING
        if call.copied or call.needs_shift or call.needs_keys:
            call, made = _converted(call, seen, looked, target, options)
            again = None
        o = caller.empty(*call.output) if target is None else target
        lse = None if call.lse is None else caller.empty(*call.lse)
        _launch(call, seen, looked, o, lse, made, caller.stream)
        if again is not None:
            again.remember(call)
        return caller.deliver(o) if out is None else out, caller.deliver(lse)


def _planned(
    seen: Seen, scores: SeenScores, target: View | None, options: Options
) -> AttentionCall:
    q, k, v = seen["q"].signature, seen["k"].signature, seen["v"].signature
    arrays = NO_ARRAYS
    if scores:
        arrays = ScoreArrays(**{name: x.signature for name, x in scores.items()})
    return prepare(q, k, v, None if target is None else target.signature, *options, arrays)


def _check_finite(seen: Seen, given: dict[Name, Any]) -> None:
    for name, x in seen.items():
        # Where a scope holds NaN or an infinity, its scale is not finite.
        if not is_finite(view_cupy(x.scale) if isinstance(x, QuantizedTensor) else x):
            raise ArgumentError(name, given[name], "without NaN and infinity")


class _Made(NamedTuple):
    """Arrays that are made before the launches: "lse_shift" and "k_values" of the pipeline."""

    lse_shift: View | None = None
    k_values: View | None = None


_NOTHING = _Made()


def _converted(
    call: AttentionCall,
    seen: Seen,
    scores: SeenScores,
    target: View | None,
    options: Options,
) -> tuple[AttentionCall, _Made]:
    """Do first what kernels do not: copy arrays, and compute with what is quantized already."""
    for name, x in seen.items():
        if name in call.copied and isinstance(x, View):
            seen[name] = contiguous(x)
    scheme = call.problem.scheme
    made = _NOTHING
    q, k, v = seen["q"], seen["k"], seen["v"]
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
                seen |= quantized
        shift = call.problem.softmax_scale * q.dot(k.vector)
        made = made._replace(lse_shift=view_cupy(shift))
    if call.needs_keys and isinstance(k, QuantizedTensor):
        made = made._replace(k_values=view_cupy(k.dequantize()))
    return _planned(seen, scores, target, options), made


def _order_address(k: View | QuantizedTensor, v: View | QuantizedTensor) -> int:
    """Return where the order of sorted keys is, if K or V is quantized already and has one."""
    known = k if isinstance(k, QuantizedTensor) else v
    return known.order_address if isinstance(known, QuantizedTensor) else 0


def _launch(
    call: AttentionCall,
    seen: Seen,
    scores: SeenScores,
    target: View,
    lse: View | None,
    made: _Made,
    stream: int,
) -> None:
    if not call.launches:
        as_cupy(target)[...] = 0
        if lse is not None:
            _fill_lse(lse, scores.get("sinks"))
        return
    o = target
    if not call.writes_out:
        o = view_cupy(cupy_module().empty_like(as_cupy(target), order="C"))
    q, k, v = seen["q"], seen["k"], seen["v"]
    given = (
        *_addresses(q),
        *_addresses(k),
        *_addresses(v),
        o.ptr,
        *[0 if view is None else view.ptr for view in (lse, *made)],
        _order_address(k, v),
        *[scores[name].ptr if name in scores else 0 for name in SCORE_NAMES],
    )
    call.launches(given, stream)
    if o is not target:
        as_cupy(target)[...] = o.owner


def _fill_lse(lse: View, sinks: View | None) -> None:
    """Write the log-sum-exp of rows that see no key, of which a sink is all there is."""
    as_cupy(lse).fill(-np.inf)
    if sinks is not None:
        as_cupy(lse)[...] = as_float32(sinks)[:, None]


def _addresses(x: View | QuantizedTensor) -> tuple[int, int, int]:
    return x.addresses if isinstance(x, QuantizedTensor) else (x.ptr, 0, 0)
