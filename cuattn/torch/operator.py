"""`cuattn.attention` as operators of PyTorch: ``torch.ops.cuattn.attention`` and the one with lse.

An operator is a schema, a function that computes it for each kind of device, and one that says what
shapes come out, so that nothing looks inside: there are addresses and launches there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..attention import attention as attend
from ..common.public import naming_keywords
from ..errors import ArgumentError
from ..operands.score_mod import MaskMod, ScoreMod
from ..scheme import Scheme
from .backward import gradients
from .calls import count_own, counting
from .casting import cast
from .constants import mod_at, number_of_mod, scheme_of, scheme_text
from .workspace import pytorch_memory

__all__ = ["ALL_KEYS", "apply", "attention", "check_gradients"]

ALL_KEYS = (-1, -1)

_ARGUMENTS = """
    Tensor q, Tensor k, Tensor v, Tensor? attn_mask=None, Tensor? sinks=None,
    Tensor? alibi_slopes=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None,
    Tensor? seqused_k=None, SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None,
    bool is_causal=False, SymInt[2] window_size=[-1, -1], float softcap=0., float? scale=None,
    str scheme="int8", str layout="HND", int score_mod=0, int mask_mod=0, str backward="",
    int calls=0
"""
_COUNT = 21

_library = torch.library.Library("cuattn", "DEF")
_library.define(f"attention({_ARGUMENTS}) -> Tensor")
_library.define(f"attention_with_lse({_ARGUMENTS}) -> (Tensor, Tensor)")


@naming_keywords
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
    score_mod: str | ScoreMod | None = None,
    mask_mod: str | MaskMod | None = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_k: Any = None,
    scale: float | None = None,
    scheme: str | Scheme = "int8",
    layout: str = "HND",
    return_lse: bool = False,
    backward: str | None = None,
) -> Any:
    """Compute `cuattn.attention` of tensors, bit for bit, as an operator of PyTorch.

    So it can be in functions that `torch.compile` compiles, also with ``fullgraph=True``, and its
    workspace is PyTorch's memory, so that it can be captured into CUDA graphs without more, after
    one call of its kind.

    Parameters
    ----------
    q, k, v : Tensor
        As for `cuattn.attention`, as are all parameters that are not here. Under `torch.autocast`
        they are cast, as PyTorch casts those of its own attention.
    attn_mask : Tensor, optional
        Of a `cuattn.BlockMask` only `cuattn.attention` makes something.
    backward : {None, "torch"}
        What is done for gradients: nothing, so that tensors that require them are refused; or
        PyTorch computes them, from the exact attention of the same inputs, which it computes again
        then. That is for `is_causal`, `window_size`, `attn_mask` and `alibi_slopes`, of which the
        latter gets none; and `lse` has none.

    Returns
    -------
    o : Tensor with the shape of `q` but for the head_dim, which is that of `v`
        In memory its axes have the order of those of `q`.
    lse : Tensor of float32
        Only with `return_lse`.

    Raises
    ------
    ArgumentError
        As `cuattn.attention`; and if gradients are required that there are not.
    """
    q, k, v, attn_mask = cast(q, k, v, attn_mask)
    return apply(
        q,
        k,
        v,
        attn_mask,
        sinks,
        alibi_slopes,
        cu_seqlens_q,
        cu_seqlens_k,
        seqused_k,
        max_seqlen_q,
        max_seqlen_k,
        is_causal,
        window_size,
        softcap,
        scale,
        scheme_text(scheme),
        layout,
        number_of_mod(ScoreMod, score_mod),
        number_of_mod(MaskMod, mask_mod),
        backward,
        return_lse=return_lse,
    )


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
    given = {"q": q, "k": k, "v": v, "attn_mask": attn_mask, "sinks": sinks}
    given |= {"alibi_slopes": alibi_slopes, "cu_seqlens_q": cu_seqlens_q}
    given |= {"cu_seqlens_k": cu_seqlens_k, "seqused_k": seqused_k}
    for name, x in given.items():
        if not isinstance(x, torch.Tensor) and (x is not None or name in ("q", "k", "v")):
            raise ArgumentError(name, x, "a tensor of PyTorch")
    check_gradients(given, backward, softcap, score_mod or mask_mod)
    options = (max_seqlen_q, max_seqlen_k, is_causal, window_size, softcap, scale, scheme, layout)
    number = counting.number if number is None else number
    operator = torch.ops.cuattn.attention_with_lse if return_lse else torch.ops.cuattn.attention
    return operator(
        *given.values(), *options, score_mod, mask_mod, backward or "", number
    )


def check_gradients(
    given: Mapping[str, Any], backward: str | None, softcap: float = 0.0, mods: int = 0
) -> None:
    """Check that gradients are not required, or are those that PyTorch computes.

    Parameters
    ----------
    given : mapping of str to Tensor or None
        By the names of arguments.
    backward, softcap
        As of `attention`.
    mods : int
        0 if there are no expressions.

    Raises
    ------
    ArgumentError
        Otherwise.
    """
    if backward not in (None, "", "torch"):
        raise ArgumentError("backward", backward, 'None or "torch"')
    if torch.is_grad_enabled():
        _check_required(given, backward, softcap, mods)


def _check_required(
    given: Mapping[str, Any], backward: str | None, softcap: float, mods: int
) -> None:
    for name, x in given.items():
        if x is None or not x.requires_grad:
            continue
        if not backward:
            expected = 'without gradients: under torch.no_grad() or detached; or backward="torch"'
            raise ArgumentError(name, x, expected)
        if name == "alibi_slopes":
            raise ArgumentError(name, x, "without gradients, which PyTorch does not compute")
        _check_differentiable(given, softcap, mods)


def _check_differentiable(given: Mapping[str, Any], softcap: float, mods: int) -> None:
    for name in ("sinks", "cu_seqlens_q", "cu_seqlens_k", "seqused_k"):
        if given.get(name) is not None:
            raise ArgumentError(name, given[name], "None, as gradients are required")
    if softcap:
        raise ArgumentError("softcap", softcap, "0, as gradients are required")
    if mods:
        raise ArgumentError("score_mod or mask_mod", mods, "None, as gradients are required")


def _empty(q: Any, v: Any) -> Any:
    """Return memory for the output, whose axes lie as those of q do."""
    if v.shape[-1] == q.shape[-1]:
        return torch.empty_like(q)
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _empty_lse(q: Any, is_packed: bool, layout: str) -> Any:
    if is_packed:
        shape = (q.shape[1], q.shape[0])
    elif layout == "NHD":
        shape = (q.shape[0], q.shape[2], q.shape[1])
    else:
        shape = tuple(q.shape[:3])
    return q.new_empty(shape, dtype=torch.float32)


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
        score_mod=mod_at(score_mod),
        mask_mod=mod_at(mask_mod),
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


def _compute_on_gpu(return_lse: bool, *args: Any) -> Any:
    with pytorch_memory():
        return _compute(return_lse, *args)


def _shapes(return_lse: bool, q: Any, k: Any, v: Any, *rest: Any) -> Any:
    """Say what comes out of `_compute`, for tensors without memory."""
    o = _empty(q, v)
    if not return_lse:
        return o
    is_packed, layout = q.ndim == 3, rest[13] if len(rest) > 13 else "HND"
    return o, _empty_lse(q, is_packed, layout)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep what the gradients are computed from."""
    names = ("q", "k", "v", "attn_mask", "sinks", "alibi_slopes")
    names += ("cu_seqlens_q", "cu_seqlens_k", "seqused_k")
    given = dict(zip(names, inputs, strict=False))
    _, _, is_causal, window_size, softcap, scale, _, layout, score_mod, mask_mod, backward, _ = (
        inputs[len(names) :]
    )
    _check_required(given, backward, softcap, score_mod or mask_mod)
    ctx.save_for_backward(*(given[name] for name in ("q", "k", "v", "attn_mask", "alibi_slopes")))
    ctx.options = (is_causal, tuple(window_size), scale, layout)
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:4]
    found = gradients(grad, *ctx.saved_tensors, *ctx.options, wanted)
    return (*found, *([None] * (_COUNT - len(found))))


for _name, _with_lse in (("attention", False), ("attention_with_lse", True)):
    _library.impl(_name, partial(_compute, _with_lse), "CPU")
    _library.impl(_name, partial(_compute_on_gpu, _with_lse), "CUDA")
    torch.library.register_fake(f"cuattn::{_name}", partial(_shapes, _with_lse), lib=_library)
    torch.library.register_autograd(
        f"cuattn::{_name}", _gradients, setup_context=_save, lib=_library
    )
