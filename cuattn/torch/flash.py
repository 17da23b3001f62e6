"""FlashAttention's functions without a cache, by name, layout and default (flash_attn 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..common.public import naming_keywords
from ..errors import ArgumentError
from ..scheme import Scheme
from .attention import attention
from .operator import ALL_KEYS

__all__ = ["check_none", "flash_attn_func", "flash_attn_varlen_func", "pair"]


@naming_keywords
def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = ALL_KEYS,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    scheme: str | Scheme = "int8",
    backward: str | None = None,
) -> Any:
    """Compute ``flash_attn.flash_attn_func`` with quantized operands.

    Parameters
    ----------
    q : Tensor [batch, seqlen_q, num_q_heads, head_dim]
    k, v : Tensor [batch, seqlen_kv, num_kv_heads, head_dim]
        float16, bfloat16 or float32.
    dropout_p : float
        Only 0.
    softmax_scale : float, optional
        By default ``1/sqrt(head_dim)``.
    causal : bool
        The last row sees the last key, as in `cuattn.attention`.
    window_size : (int, int)
        Keys to the left and to the right of a row's own that it sees; -1 for all.
    softcap : float
        0 does not cap.
    alibi_slopes : Tensor [num_q_heads] or [batch, num_q_heads], optional
    deterministic : bool
        Makes no difference: the same call always gives the same bits.
    return_attn_probs : bool
        Return the log-sum-exp, and None in the place of P, which is never stored.
    scheme, backward
        As for `cuattn.torch.attention`.

    Returns
    -------
    o : Tensor [batch, seqlen_q, num_q_heads, head_dim]
    softmax_lse : Tensor of float32 [batch, num_q_heads, seqlen_q]
        Only with `return_attn_probs`. -inf of a row that sees no key.
    None
        Likewise.

    Raises
    ------
    ArgumentError
        As `cuattn.torch.attention`, and for dropout.
    """
    _check_no_dropout(dropout_p)
    given = attention(
        q,
        k,
        v,
        is_causal=causal,
        window_size=pair(window_size),
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        scale=softmax_scale,
        scheme=scheme,
        layout="NHD",
        return_lse=return_attn_probs,
        backward=backward,
    )
    return (*given, None) if return_attn_probs else given


@naming_keywords
def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = ALL_KEYS,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Any = None,
    *,
    scheme: str | Scheme = "int8",
) -> Any:
    """Compute ``flash_attn.flash_attn_varlen_func`` with quantized operands.

    Parameters
    ----------
    q : Tensor [total_q, num_q_heads, head_dim]
    k, v : Tensor [total_k, num_kv_heads, head_dim]
    cu_seqlens_q, cu_seqlens_k : Tensor of int32 [batch + 1]
        Where sequences begin and end.
    max_seqlen_q, max_seqlen_k : int
        What no sequence is longer than.
    block_table : None
        Pages of keys are refused: `cuattn.KVCache` has pages.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic
        As for `flash_attn_func`, as are the others.

    Returns
    -------
    o : Tensor [total_q, num_q_heads, head_dim]
    softmax_lse : Tensor of float32 [num_q_heads, total_q]
        Only with `return_attn_probs`.
    None
        Likewise.

    Raises
    ------
    ArgumentError
        As `cuattn.torch.attention`, and for dropout or pages.
    """
    _check_no_dropout(dropout_p)
    check_none(block_table=block_table)
    given = attention(
        q,
        k,
        v,
        is_causal=causal,
        window_size=pair(window_size),
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        scale=softmax_scale,
        scheme=scheme,
        return_lse=return_attn_probs,
    )
    return (*given, None) if return_attn_probs else given


def pair(window_size: Sequence[int]) -> tuple[int, int]:
    """Return a window, which some callers give as a list, as two numbers."""
    left, right = window_size
    return left, right


def _check_no_dropout(dropout_p: float) -> None:
    if dropout_p:
        raise ArgumentError("dropout_p", dropout_p, "0, as cuattn has no dropout")


def check_none(**given: Any) -> None:
    """Check that arguments that cuattn has nothing for are None.

    Raises
    ------
    ArgumentError
        Otherwise.
    """
    for name, x in given.items():
        if x is not None:
            raise ArgumentError(name, x, "None, as cuattn.torch has nothing for it")
