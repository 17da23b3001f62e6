"""FlashAttention's function with a cache, by its name, layout and defaults (flash_attn 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..common.public import naming_keywords
from ..errors import ArgumentError
from ..scheme import Scheme
from .attention import attention, cast
from .flash import check_none, pair
from .operator import ALL_KEYS

__all__ = ["flash_attn_with_kvcache"]


@naming_keywords
def flash_attn_with_kvcache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Any = None,
    cache_leftpad: Any = None,
    block_table: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = ALL_KEYS,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Any = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    scheme: str | Scheme = "int8",
) -> Any:
    """Compute ``flash_attn.flash_attn_with_kvcache`` with quantized operands.

    The cache is of floats, and every call quantizes what counts of it, which for single queries
    costs more than it saves: `cuattn.KVCache` keeps keys and values in 8 or 4 bits.

    Parameters
    ----------
    q : Tensor [batch, seqlen_q, num_q_heads, head_dim]
    k_cache, v_cache : Tensor [batch, capacity, num_kv_heads, head_dim]
    k, v : Tensor [batch, seqlen_new, num_kv_heads, head_dim], optional
        They are written into the caches, behind those that count.
    cache_seqlens : int or Tensor of int32 [batch], optional
        How many tokens of each sequence count, without `k`; by default all.
    rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, block_table : None
        Are refused: rotate q and k before, choose sequences before; `cuattn.KVCache` has pages.
    causal : bool
        The last row sees the last key that counts.
    rotary_interleaved, num_splits
        Make no difference.
    softmax_scale, window_size, softcap, alibi_slopes, scheme
        As for `flash_attn_func`.
    return_softmax_lse : bool
        Return the log-sum-exp too.

    Returns
    -------
    o : Tensor [batch, seqlen_q, num_q_heads, head_dim]
    softmax_lse : Tensor of float32 [batch, num_q_heads, seqlen_q]
        Only with `return_softmax_lse`.

    Raises
    ------
    ArgumentError
        As `cuattn.torch.attention`, and for what is refused. The caches are as they were.
    """
    check_none(
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        block_table=block_table,
    )
    if (k is None) != (v is None):
        raise ArgumentError("v", v, "given with k, or neither")
    if k is not None and cache_seqlens is None:
        raise ArgumentError("cache_seqlens", None, "given, as k is: where its tokens go")
    used = cache_seqlens
    if used is not None and not isinstance(used, torch.Tensor):
        used = torch.full((q.shape[0],), used, dtype=torch.int32, device=q.device)
    if k is not None:
        k, v, *_ = cast(k, v, v)
        used = _append(k_cache, v_cache, k, v, used)
    return attention(
        q,
        k_cache,
        v_cache,
        is_causal=causal,
        window_size=pair(window_size),
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        seqused_k=used,
        scale=softmax_scale,
        scheme=scheme,
        layout="NHD",
        return_lse=return_softmax_lse,
    )


def _append(k_cache: Any, v_cache: Any, k: Any, v: Any, used: Any) -> Any:
    """Write tokens into caches, behind those that count, and return how many count then."""
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if x.shape[0] != cache.shape[0] or x.shape[2:] != cache.shape[2:]:
            raise ArgumentError(f"{name}.shape", x.shape, f"as {cache.shape}, but for the tokens")
    sequences = torch.arange(k.shape[0], device=k.device)[:, None]
    places = used[:, None].long() + torch.arange(k.shape[1], device=k.device)
    with torch.no_grad():
        k_cache[sequences, places] = k.to(k_cache.dtype)
        v_cache[sequences, places] = v.to(v_cache.dtype)
    return (used + k.shape[1]).to(torch.int32)
