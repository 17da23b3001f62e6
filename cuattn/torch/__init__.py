"""cuattn in PyTorch: operators, PyTorch's and other libraries' functions, and models that use them.

`attention` is `cuattn.attention` as an operator, which `torch.compile` takes into its graph;
`scaled_dot_product_attention` has PyTorch's signature, `flash_attn_func`, `flash_attn_varlen_func`
and `flash_attn_with_kvcache` have FlashAttention's, `sageattn` has SageAttention's; `replace` puts
them into a model as it is. `calls` counts what was answered by cuattn, and why not.

Needs PyTorch 2.6 or newer; ``import cuattn`` imports neither this nor that.

May import `errors`, `common`, `scheme`, `presets`, `arrays`, `operands`, `choice` and
`attention`.
"""

from __future__ import annotations

from .attention import attention
from .calls import Calls, calls
from .flash import flash_attn_func, flash_attn_varlen_func
from .flash_kvcache import flash_attn_with_kvcache
from .replace import Replacement, replace
from .sage import sageattn
from .sdpa import scaled_dot_product_attention

__all__ = [
    "Calls",
    "Replacement",
    "attention",
    "calls",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "replace",
    "sageattn",
    "scaled_dot_product_attention",
]
