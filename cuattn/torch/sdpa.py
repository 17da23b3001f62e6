"""`scaled_dot_product_attention` with PyTorch's signature and PyTorch's meaning of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import functional

from ..common.public import naming_keywords
from ..scheme import Scheme
from .attention import cast
from .calls import calls, count_fallback
from .constants import scheme_text
from .operator import ALL_KEYS, apply
from .refusals import Refusal, refusal_of_tensors

__all__ = ["answer", "scaled_dot_product_attention"]

# Before `replace` may put another function in its place.
_pytorchs: Callable[..., Any] = functional.scaled_dot_product_attention


@naming_keywords
def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    scheme: str | Scheme = "int8",
    fallback: bool = False,
    backward: str | None = None,
) -> Any:
    """Compute `torch.nn.functional.scaled_dot_product_attention` with quantized operands.

    Parameters
    ----------
    query : Tensor [batch, num_q_heads, seqlen_q, head_dim]
    key, value : Tensor [batch, num_kv_heads, seqlen_kv, head_dim]
        Or of three axes, without a batch. float16, bfloat16 or float32; cast as PyTorch casts them
        under `torch.autocast`. A batch of 1 stands for any; `value` may have another head_dim.
    attn_mask : Tensor, optional
        Of bool, True is seen; of floats it is added to the logits. It broadcasts to [batch,
        num_q_heads, seqlen_q, seqlen_kv]. Rows that see no key are 0, also where a mask of floats
        has the least number of its type, for which PyTorch takes the mean of V.
    dropout_p : float
        cuattn has no dropout.
    is_causal : bool
        As PyTorch has it: the first row sees the first key. In `cuattn.attention` the last row sees
        the last key; they differ where `seqlen_q` is not `seqlen_kv`.
    scale : float, optional
        By default ``1/sqrt(head_dim)``.
    enable_gqa : bool
        Allow more heads of `query` than of `key` and `value`.
    scheme : str or Scheme
        As for `cuattn.attention`.
    fallback : bool
        Let PyTorch answer what cuattn cannot: dropout, gradients, other types and sizes. `calls`
        counts both, and the reasons.
    backward : {None, "torch"}
        As for `cuattn.torch.attention`.

    Returns
    -------
    Tensor [batch, num_q_heads, seqlen_q, head_dim of value]

    Raises
    ------
    ArgumentError
        If cuattn cannot answer and `fallback` is False, or a mask does not broadcast.
    """
    options = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
    how = (scheme_text(scheme), fallback, backward, calls.number)
    return answer(_pytorchs, (query, key, value), options, how)


def answer(
    original: Callable[..., Any],
    tensors: tuple[Any, Any, Any],
    options: tuple[Any, float, bool, float | None, bool],
    how: tuple[str, bool, str | None, int],
) -> Any:
    """Answer a call of PyTorch's function, or let it do so itself.

    Parameters
    ----------
    original : callable
        PyTorch's function.
    tensors : tuple of Tensor
        query, key and value.
    options : tuple of (Tensor or None, float, bool, float or None, bool)
        attn_mask, dropout_p, is_causal, scale and enable_gqa.
    how : tuple of (str, bool, str or None, int)
        The text of the scheme, fallback, backward and the number of a counter.

    Raises
    ------
    ArgumentError
        As `scaled_dot_product_attention`.
    """
    scheme, fallback, backward, number = how
    attn_mask, dropout_p, is_causal, scale, enable_gqa = options
    q, k, v, mask = cast(*tensors, attn_mask)
    against = _refusal(q, k, v, (mask, *options[1:]), backward)
    if against is not None:
        if not fallback:
            raise against.error()
        count_fallback(number, against.reason)
        return original(
            *tensors, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    has_batch = q.ndim == 4
    if not has_batch:
        q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
        if mask is not None and mask.ndim == 3:
            mask = mask.unsqueeze(0)
    q, k, v = _one_batch(q, k, v)
    window = ALL_KEYS
    rows, keys = q.shape[2], k.shape[2]
    if is_causal and rows != keys:
        if rows < keys:  # nobody sees the keys behind
            k, v = k[:, :, :rows], v[:, :, :rows]
        else:  # of cuattn's window, which ends beside the last key, so many more to the right
            is_causal, window = False, (-1, rows - keys)
    o = apply(
        q,
        k,
        v,
        mask,
        is_causal=is_causal,
        window_size=window,
        scale=scale,
        scheme=scheme,
        backward=backward,
        number=number,
    )
    return o if has_batch else o.squeeze(0)


def _refusal(
    q: Any,
    k: Any,
    v: Any,
    options: tuple[Any, float, bool, float | None, bool],
    backward: str | None,
) -> Refusal | None:
    mask, dropout_p, is_causal, scale, enable_gqa = options
    if dropout_p:
        return Refusal("dropout", "dropout_p", dropout_p, "0, as cuattn has no dropout")
    if mask is not None and is_causal:
        return Refusal("mask", "attn_mask", mask, "None, as is_causal is True")
    names = ("query", "key", "value")
    against = refusal_of_tensors(q, k, v, mask, names=names, backward=backward)
    if against is not None:
        return against
    if not q.ndim == k.ndim == v.ndim or q.ndim not in (3, 4):
        expected = "of four axes, [batch, head, token, channel], or of three"
        return Refusal("axes", "query.shape", tuple(q.shape), expected)
    if mask is not None and not 2 <= mask.ndim <= q.ndim:
        return Refusal("mask", "attn_mask.shape", tuple(mask.shape), f"of 2 to {q.ndim} axes")
    heads, kv_heads = q.shape[-3], k.shape[-3]
    if v.shape[-3] != kv_heads or v.shape[-2] != k.shape[-2]:
        return Refusal(
            "shape", "value.shape", tuple(v.shape), "as that of key, but for the head_dim"
        )
    if heads != kv_heads and kv_heads != 1 and not (enable_gqa and heads % max(kv_heads, 1) == 0):
        expected = f"of {heads} heads, or with enable_gqa of a number that divides it"
        return Refusal("heads", "key.shape", tuple(k.shape), expected)
    if scale is not None and not 0 <= scale < float("inf"):
        return Refusal("scale", "scale", scale, "at least 0; for a negative one negate query")
    return None


def _one_batch(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Repeat what has a batch of 1, in no memory of its own."""
    if q.shape[0] == k.shape[0] == v.shape[0]:
        return q, k, v
    batch = max(x.shape[0] for x in (q, k, v))
    q, k, v = (x.expand(batch, -1, -1, -1) if x.shape[0] == 1 else x for x in (q, k, v))
    return q, k, v
