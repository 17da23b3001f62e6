"""`cuattn.attention` as operators of PyTorch: ``torch.ops.cuattn.attention`` and the one with lse.

An operator is a schema, a function that computes it for each kind of device, and one that says what
shapes come out, so that nothing looks inside: there are addresses and launches there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..attention import attention as attend
from ..errors import ArgumentError
from .backward import check_gradients, check_required, gradients
from .calls import count_own, counting
from .constants import mod_at, scheme_of
from .workspace import pytorch_memory

__all__ = ["ALL_KEYS", "apply"]

ALL_KEYS = (-1, -1)

_ARGUMENTS = """
    Tensor q, Tensor k, Tensor v, Tensor? attn_mask=None, Tensor? sinks=None,
    Tensor? alibi_slopes=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None,
    Tensor? seqused_k=None, SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None,
    bool is_causal=False, SymInt[2] window_size=[-1, -1], float softcap=0., float? scale=None,
    str scheme="int8", str layout="HND", int score_mod=0, int mask_mod=0, str backward="",
    int calls=0
"""
# Those of the arguments that are tensors come first.
_TENSORS: tuple[str, ...] = ("q", "k", "v", "attn_mask", "sinks", "alibi_slopes")
_TENSORS += ("cu_seqlens_q", "cu_seqlens_k", "seqused_k")
_ARGUMENT_COUNT = 21

_library = torch.library.Library("cuattn", "DEF")
_library.define(f"attention({_ARGUMENTS}) -> Tensor")
_library.define(f"attention_with_lse({_ARGUMENTS}) -> (Tensor, Tensor)")


def apply(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    sinks: Any = None,
    alibi_slopes: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    seqused_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    scale: float | None = None,
    scheme: str = "int8",
    layout: str = "HND",
    score_mod: int = 0,
    mask_mod: int = 0,
    backward: str | None = None,
    number: int | None = None,
    *,
    return_lse: bool = False,
) -> Any:
    """Call one of the operators; `scheme` is text, and `number` that of a counter,
    by default this thread's.

    Raises
    ------
    ArgumentError
        If an argument is of a type that the schema lacks, or gradients are required that there are
        not.
    """
    tensors = (q, k, v, attn_mask, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seqused_k)
    for n, x in enumerate(tensors):
        if not isinstance(x, torch.Tensor) and (x is not None or n < 3):
            raise ArgumentError(_TENSORS[n], x, "a tensor of PyTorch")
    if backward or torch.is_grad_enabled():
        given = dict(zip(_TENSORS, tensors, strict=True))
        check_gradients(given, backward, softcap, score_mod or mask_mod)
    options = (max_seqlen_q, max_seqlen_k, is_causal, window_size, softcap, scale, scheme, layout)
    number = counting.number if number is None else number
    operator = _with_lse if return_lse else _without_lse
    return operator(*tensors, *options, score_mod, mask_mod, backward or "", number)


def _empty(q: Any, v: Any) -> Any:
    """Return memory for the output, whose axes lie as those of q do."""
    if v.shape[-1] == q.shape[-1]:
        return torch.empty_like(q)
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _empty_lse(q: Any, is_packed: bool, layout: str) -> Any:
    if is_packed:
        q = q.transpose(0, 1)
    elif layout == "NHD":
        q = q.transpose(1, 2)
    return q.new_empty(q.shape[:-1], dtype=torch.float32)


def _compute(
    return_lse: bool,
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    sinks: Any = None,
    alibi_slopes: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    seqused_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    is_causal: bool = False,
    window_size: Sequence[int] = ALL_KEYS,
    softcap: float = 0.0,
    scale: float | None = None,
    scheme: str = "int8",
    layout: str = "HND",
    score_mod: int = 0,
    mask_mod: int = 0,
    backward: str = "",
    number: int = 0,
) -> Any:
    """Do what an operator says."""
    left, right = window_size
    own_score, own_mask = mod_at(score_mod), mod_at(mask_mod)
    out = _empty(q, v)
    if cu_seqlens_q is not None and not q.is_cuda:
        out.zero_()  # what lies behind the last sequence stays, and NumPy looks at it
    o = attend(
        q,
        k,
        v,
        is_causal=is_causal,
        window_size=(left, right),
        softcap=softcap,
        sinks=sinks,
        attn_mask=attn_mask,
        alibi_slopes=alibi_slopes,
        score_mod=own_score,
        mask_mod=own_mask,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        seqused_k=seqused_k,
        scale=scale,
        scheme=scheme_of(scheme),
        layout=layout,
        return_lse=return_lse,
        out=out,
    )
    count_own(number, scheme.partition("\n")[0])
    return o


def _compute_on_gpu(return_lse: bool, q: Any, *rest: Any) -> Any:
    with pytorch_memory(q.device):
        return _compute(return_lse, q, *rest)


def _shapes(return_lse: bool, q: Any, k: Any, v: Any, *rest: Any) -> Any:
    """Say what comes out of `_compute`, for tensors without memory."""
    o = _empty(q, v)
    if not return_lse:
        return o
    is_packed, layout = q.ndim == 3, rest[13] if len(rest) > 13 else "HND"
    return o, _empty_lse(q, is_packed, layout)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep what the gradients are computed from."""
    given = dict(zip(_TENSORS, inputs, strict=False))
    _, _, is_causal, window_size, softcap, scale, _, layout, score_mod, mask_mod, backward, _ = (
        inputs[len(_TENSORS) :]
    )
    check_required(given, backward, softcap, score_mod or mask_mod)
    ctx.save_for_backward(*(given[name] for name in ("q", "k", "v", "attn_mask", "alibi_slopes")))
    ctx.options = (is_causal, tuple(window_size), scale, layout)
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:4]
    found = gradients(grad, ctx.saved_tensors, *ctx.options, wanted=wanted)
    return (*found, *([None] * (_ARGUMENT_COUNT - len(found))))


for _name, _return_lse in (("attention", False), ("attention_with_lse", True)):
    _library.impl(_name, partial(_compute, _return_lse), "CPU")
    _library.impl(_name, partial(_compute_on_gpu, _return_lse), "CUDA")
    torch.library.register_fake(f"cuattn::{_name}", partial(_shapes, _return_lse), lib=_library)
    torch.library.register_autograd(
        f"cuattn::{_name}", _gradients, setup_context=_save, lib=_library
    )

_without_lse = torch.ops.cuattn.attention.default
_with_lse = torch.ops.cuattn.attention_with_lse.default
