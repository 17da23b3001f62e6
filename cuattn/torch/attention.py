"""`attention` for callers of PyTorch, and what `torch.autocast` does to its inputs."""

from __future__ import annotations

from typing import Any

import torch

from ..common.public import naming_keywords
from ..operands.score_mod import MaskMod, ScoreMod
from ..scheme import Scheme
from .constants import number_of_mod, scheme_text
from .operator import ALL_KEYS, apply

__all__ = ["attention", "cast"]


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
    score_mod, mask_mod : str, ScoreMod or MaskMod, optional
        Of objects the arrays stay those of the object, and are no inputs of a graph; PyTorch 2.6
        does not compile functions with them.
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


def cast(q: Any, k: Any, v: Any, attn_mask: Any = None) -> tuple[Any, Any, Any, Any]:
    """Return the tensors of a call in the type of `torch.autocast`, if there is one where q is.

    PyTorch has its own attention on the list of what is computed in that type. Tensors of float64
    and of no float stay as they are.
    """
    if not isinstance(q, torch.Tensor):
        return q, k, v, attn_mask
    kind = q.device.type
    if kind not in ("cuda", "cpu") or not torch.is_autocast_enabled(kind):
        return q, k, v, attn_mask
    dtype = torch.get_autocast_dtype(kind)
    q, k, v, attn_mask = (_as(x, dtype) for x in (q, k, v, attn_mask))
    return q, k, v, attn_mask


def _as(x: Any, dtype: Any) -> Any:
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(dtype)
