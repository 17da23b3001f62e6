"""Operations on PyTorch tensors: its own attention by one of its backends, and comfy-kitchen's."""

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


def comfy_kitchen(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind comfy-kitchen's attention in full INT8 to PyTorch tensors [B, H, N, D] in float16."""
    import comfy_kitchen as library

    del case
    quantized = library.prequantize_int8_attention(q, k, v)
    return Run(
        kernel=lambda: library.int8_attention_from_prequantized(quantized),
        end_to_end=lambda: library.int8_attention(q, k, v),
    )


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
