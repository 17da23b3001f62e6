"""PyTorch's `scaled_dot_product_attention`, held to one of its backends."""

from __future__ import annotations

from typing import Any

from ..cases import Case
from ..ours import Run


def flash(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind PyTorch's copy of FlashAttention-2 to tensors [B, H, N, D]."""
    return _bound(q, k, v, case, "FLASH_ATTENTION")


def cudnn(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind the cuDNN that PyTorch brings to tensors [B, H, N, D]."""
    return _bound(q, k, v, case, "CUDNN_ATTENTION")


def _bound(q: Any, k: Any, v: Any, case: Case, backend: str) -> Run:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    only = SDPBackend.__members__[backend]
    options: dict[str, Any] = {"is_causal": case.is_causal}
    if case.num_kv_heads != case.num_q_heads:
        options["enable_gqa"] = True

    def attend() -> Any:
        with sdpa_kernel(only):
            return scaled_dot_product_attention(q, k, v, **options)

    return Run(kernel=attend, end_to_end=attend)
