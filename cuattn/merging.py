"""`merge_states`: attention to a set of keys from that to its parts."""

from __future__ import annotations

from typing import Any

from .arrays.caller import Caller, device_of, on_device
from .arrays.overlap import check_output
from .arrays.view import CPU, CUDA, View, as_cupy, contiguous, cupy_module, view_cupy
from .common.public import public
from .emulation.merging import merge_on_host
from .errors import ArgumentError
from .operands.states import as_elements, parts_of
from .plan.merge import MergeCall, prepare_merge

__all__ = ["merge_states"]


@public
def merge_states(
    o: Any, lse: Any, *, layout: str = "HND", out: Any = None, stream: Any = None
) -> tuple[Any, Any]:
    r"""Merge the attention of the same queries to several sets of keys into that to all of them.

    .. math:: lse = \ln \sum_p e^{lse_p}, \quad o = \sum_p e^{lse_p - lse} o_p

    The sets have no key in common: pages of a cache, a prefix that requests share, what a GPU has
    of a sequence. Results may be merged again. Each part is what `cuattn.attention` returns with
    ``return_lse=True``, and may come of another scheme than the others.

    Parameters
    ----------
    o : sequence of arrays [batch, heads, seqlen, head_dim], or array [part, ...]
        One array for each part, or one of all. With layout "NHD" tokens come before heads. float16,
        bfloat16 or float32, all of one type and shape; `head_dim` is a multiple of 8 up to 1024.
        Arrays of CuPy, PyTorch, JAX or anything else with ``__dlpack__`` on one GPU, or arrays in
        host memory. They are never written to. One whose last axis is not contiguous is copied
        first.
    lse : sequence of arrays [batch, heads, seqlen], or array [part, batch, heads, seqlen]
        float32, natural logarithms, with any strides and in this order whatever the layout. Where
        it is -inf a part has no keys, and its `o` may hold anything.
    layout : {"HND", "NHD"}
        Order of the axes of `o`, `out` included.
    out : array, optional
        Written and returned as the first result: of any library but JAX, whose arrays are
        immutable, with shape, type and device of a part, overlapping no input, and requiring no
        gradients. One whose rows are not contiguous is written by a copy.
    stream : int or stream, optional
        As for `cuattn.attention`; by default PyTorch's current stream if the first `o` is its
        tensor, else CuPy's.

    Returns
    -------
    o : array with the shape and type of a part
        `out` if given; else of the library of the first `o`, as `cuattn.attention` returns it. A
        row without keys in any part is 0.
    lse : array of float32 [batch, heads, seqlen]
        Natural logarithm, -inf for a row without keys.

    Raises
    ------
    ArgumentError
        If an argument is wrong: it names the argument, and nothing has been launched or written.
    NoGPUError, UnsupportedError, CompileError
        As for `cuattn.attention`.

    Notes
    -----
    FlashAttention-2 (arXiv 2307.08691, section 3.1) divides its loop over keys so. Sums are of
    float32 on the GPU, in the order of the parts, and of float64 in host memory; `o` is rounded
    once, so merging 16-bit results adds little to what rounding them has cost already. More than 16
    parts are merged in several launches, with states of float32 between them.

    A logit that all queries of a head have once, such as an attention sink, belongs to one of the
    parts only. An `lse` that is NaN or +inf makes its row NaN.

    On the GPU nothing waits for the GPU. A call can be captured into a CUDA graph, as one of
    `cuattn.attention`.
    """
    first, name = o, "o"
    if isinstance(o, (list, tuple)):
        if not o:
            raise ArgumentError("o", o, "a sequence of at least one array")
        first, name = o[0], "o[0]"
    kind, ordinal = device_of(first, name)
    if kind == CUDA:
        with on_device(ordinal):
            return _merge_on_gpu(o, lse, layout, out, stream, first)
    if kind != CPU:
        raise ArgumentError(name, first, "on an NVIDIA GPU or in host memory")
    if stream is not None:
        raise ArgumentError("stream", stream, "None for arrays in host memory")
    return merge_on_host(o, lse, layout, out, first)


def _merge_on_gpu(
    o: Any, lse: Any, layout: str, out: Any, stream: Any, first: Any
) -> tuple[Any, Any]:
    """Merge on the current device: look at the arrays, check and plan, launch."""
    caller = Caller(first, stream)
    parts, lses = parts_of(o, "o", caller.look), parts_of(lse, "lse", caller.look)
    target = None if out is None else caller.look(out, "out")
    call = _planned(parts, lses, target, layout)
    if target is not None:
        inputs = {f"o[{i}]": x for i, x in enumerate(parts)}
        inputs |= {f"lse[{i}]": as_elements(x, call.itemsize) for i, x in enumerate(lses)}
        check_output(out, target, inputs, call.extents, call.itemsize)
    with caller:
        if call.copied:
            for i in call.copied:
                parts[i] = contiguous(parts[i])
            call = _planned(parts, lses, target, layout)
        merged = caller.empty(*call.output) if target is None else target
        merged_lse = caller.empty(*call.lse)
        if call.launches:
            _launch(call, parts, lses, merged, merged_lse, caller.stream)
        return caller.deliver(merged) if out is None else out, caller.deliver(merged_lse)


def _planned(parts: list[View], lses: list[View], target: View | None, layout: str) -> MergeCall:
    of_parts, of_lses = (tuple([x.signature for x in some]) for some in (parts, lses))
    return prepare_merge(of_parts, of_lses, None if target is None else target.signature, layout)


def _launch(
    call: MergeCall, parts: list[View], lses: list[View], target: View, lse: View, stream: int
) -> None:
    o = target
    if not call.writes_out:
        o = view_cupy(cupy_module().empty_like(as_cupy(target), order="C"))
    call.launches((*[x.ptr for x in (*parts, *lses)], o.ptr, lse.ptr), stream)
    if o is not target:
        as_cupy(target)[...] = o.owner
