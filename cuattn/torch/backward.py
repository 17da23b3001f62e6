"""Gradients of attention by PyTorch: of the exact attention of the same inputs, computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from ..errors import ArgumentError

__all__ = ["check_gradients", "check_required", "gradients"]

# Before `replace` may put another function in its place.
_attend = functional.scaled_dot_product_attention


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
        check_required(given, backward, softcap, mods)


def check_required(
    given: Mapping[str, Any], backward: str | None, softcap: float, mods: int
) -> None:
    """Check the same where gradients are recorded, whatever the mode is now.

    Raises
    ------
    ArgumentError
        As `check_gradients`.
    """
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


def gradients(
    grad: Any,
    tensors: Sequence[Any],
    is_causal: bool,
    window_size: tuple[int, int],
    scale: float | None,
    layout: str,
    *,
    wanted: tuple[bool, ...],
) -> list[Any]:
    """Return the gradients of q, k, v and a mask of floats, None where they are not wanted.

    Parameters
    ----------
    grad : Tensor
        Of the output.
    tensors : sequence of Tensor or None
        q, k, v, attn_mask and alibi_slopes.
    is_causal, window_size, scale, layout
        As for `cuattn.attention`.
    wanted : tuple of bool
        Of q, k, v and attn_mask.
    """
    q, k, v, attn_mask, alibi_slopes = tensors
    inputs: list[Any] = [x if x is None else x.detach() for x in (q, k, v, attn_mask)]
    for x, is_wanted in zip(inputs, wanted, strict=True):
        if is_wanted:
            x.requires_grad_()
    with torch.enable_grad():
        *operands, mask = inputs
        if layout == "NHD":
            operands = [x.transpose(1, 2) for x in operands]
        simple = is_causal and operands[0].shape[2] == operands[1].shape[2]
        simple = simple and mask is None and alibi_slopes is None and window_size == (-1, -1)
        if not simple:
            mask = _mask(operands[0], operands[1], mask, alibi_slopes, is_causal, window_size)
        o = _attend(*operands, mask, 0.0, simple, scale=scale, enable_gqa=True)
        if layout == "NHD":
            o = o.transpose(1, 2)
        found = iter(
            torch.autograd.grad(o, [x for x, of in zip(inputs, wanted, strict=True) if of], grad)
        )
    return [next(found) if is_wanted else None for is_wanted in wanted]


def _mask(
    q: Any, k: Any, mask: Any, slopes: Any, is_causal: bool, window_size: tuple[int, int]
) -> Any:
    """Return one mask for PyTorch of all that hides keys or is added to logits, or None."""
    left, right = window_size
    if is_causal:
        right = 0 if right < 0 else min(right, 0)
    if left < 0 and right < 0 and slopes is None:
        return mask
    rows, keys = q.shape[2], k.shape[2]
    own = torch.arange(rows, device=q.device)[:, None] + (keys - rows)
    past = own - torch.arange(keys, device=q.device)
    seen = torch.ones_like(past, dtype=torch.bool)
    if left >= 0:
        seen = seen & (past <= left)
    if right >= 0:
        seen = seen & (past >= -right)
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    if slopes is None and (mask is None or mask.dtype == torch.bool):
        return seen
    added = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~seen, float("-inf"))
    if mask is not None and mask.dtype != torch.bool:
        added = added + mask.to(q.dtype)
    if slopes is not None:
        distance = past.abs().to(q.dtype)
        added = added - slopes.to(q.dtype).reshape(-1, q.shape[1], 1, 1) * distance
    return added
