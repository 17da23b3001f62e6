"""What `torch.autocast` does to the inputs of attention."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["cast"]


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
