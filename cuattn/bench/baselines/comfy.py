"""comfy-kitchen's attention in full INT8."""

from __future__ import annotations

from typing import Any

from ..cases import Case
from ..ours import Run


def prepare(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind it to PyTorch tensors [B, H, N, D] in float16."""
    import comfy_kitchen

    del case
    quantized = comfy_kitchen.prequantize_int8_attention(q, k, v)
    return Run(
        kernel=lambda: comfy_kitchen.int8_attention_from_prequantized(quantized),
        end_to_end=lambda: comfy_kitchen.int8_attention(q, k, v),
    )
