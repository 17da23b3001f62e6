"""`sageattn` with SageAttention's signature (sageattention 2)."""

from __future__ import annotations

from typing import Any

from ..common.public import naming_keywords
from ..errors import ArgumentError
from ..scheme import Scheme
from .attention import attention

__all__ = ["sageattn"]


@naming_keywords
def sageattn(
    q: Any,
    k: Any,
    v: Any,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    return_lse: bool = False,
    *,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
    smooth_k: bool = True,
    smooth_v: bool = False,
    qk_quant_gran: str | None = None,
    pv_accum_dtype: str | None = None,
    quantization_backend: str | None = None,
    scheme: str | Scheme = "int8",
    backward: str | None = None,
) -> Any:
    """Compute ``sageattention.sageattn`` with one of cuattn's schemes.

    ComfyUI calls it so, and programs that put it in the place of PyTorch's function.

    Parameters
    ----------
    q : Tensor [batch, num_q_heads, seqlen_q, head_dim]
    k, v : Tensor [batch, num_kv_heads, seqlen_kv, head_dim]
        With tensor_layout "NHD" tokens come before heads. float16, bfloat16 or float32.
    tensor_layout : {"HND", "NHD"}
    is_causal : bool
        For as many keys as rows, as SageAttention has it.
    sm_scale, scale : float, optional
        By default ``1/sqrt(head_dim)``.
    return_lse : bool
        Return the log-sum-exp too.
    attn_mask : Tensor, optional
        As for `cuattn.attention`: [batch, num_q_heads, seqlen_q, seqlen_kv] in either layout.
        SageAttention 2 takes no notice of one.
    dropout_p : float
        Only 0.
    enable_gqa, smooth_k, smooth_v, qk_quant_gran, pv_accum_dtype, quantization_backend
        Make no difference: heads are shared where there are fewer of them, and the scheme says the
        rest. "sage", "sage2" and "sage2-8" are those of SageAttention's papers.
    scheme, backward
        As for `cuattn.torch.attention`.

    Returns
    -------
    o : Tensor with the shape of q but for the head_dim, which is that of v
    lse : Tensor of float32 [batch, num_q_heads, seqlen_q]
        Only with `return_lse`.

    Raises
    ------
    ArgumentError
        As `cuattn.torch.attention`, for dropout, and for a causal mask over another number of keys.
    """
    if tensor_layout not in ("HND", "NHD"):
        raise ArgumentError("tensor_layout", tensor_layout, '"HND" or "NHD"')
    if dropout_p:
        raise ArgumentError("dropout_p", dropout_p, "0, as cuattn has no dropout")
    if sm_scale is not None and scale is not None and scale != sm_scale:
        raise ArgumentError("scale", scale, f"None or {sm_scale}, as sm_scale is")
    tokens = 2 if tensor_layout == "HND" else 1
    if is_causal and q.shape[tokens] != k.shape[tokens]:
        expected = "False, as there are not as many keys as rows; cuattn.attention has a meaning"
        raise ArgumentError("is_causal", is_causal, expected)
    return attention(
        q,
        k,
        v,
        is_causal=is_causal,
        attn_mask=attn_mask,
        scale=scale if sm_scale is None else sm_scale,
        scheme=scheme,
        layout=tensor_layout,
        return_lse=return_lse,
        backward=backward,
    )
