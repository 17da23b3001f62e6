"""What others do with windows and masks: PyTorch's operations, and its compiled FlexAttention."""

from __future__ import annotations

from typing import Any

from cuattn.bench.baselines import torch_ops
from cuattn.bench.baselines.registry import Baseline
from cuattn.bench.cases import Case
from cuattn.bench.ours import Run

from .feature_cases import LONG, WHOLE, WINDOW, Feature, documents

__all__ = ["FLEX", "beside"]


def beside(feature: Feature) -> list[Baseline]:
    """Return those that take turns with our calls of a feature."""
    return BESIDE.get((feature.name, feature.case), [])


def _windowed(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind PyTorch's copy of FlashAttention-2 with `WINDOW` to tensors [B, H, N, D]."""
    import torch

    left, right = WINDOW
    of_tokens = [x.transpose(1, 2) for x in (q, k, v)]
    # All sequences have these lengths; no dropout, no causal mask but the window's right side.
    options = (None, None, case.seqlen_q, case.seqlen_kv, 0.0, False, False)
    sides = {"window_size_left": left, "window_size_right": right}

    def attend() -> Any:
        return torch.ops.aten._flash_attention_forward(*of_tokens, *options, **sides)[0]

    return Run(kernel=attend, end_to_end=attend)


def _masked(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind those kernels of PyTorch that take any mask, with the documents'."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    of_token = _documents(q, case)
    mask = (of_token[:, None] == of_token)[None, None]

    def attend() -> Any:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return Run(kernel=attend, end_to_end=attend)


def _compiled(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind FlexAttention, which its first call compiles, with blocks of the documents' mask."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    of_token = _documents(q, case)

    def same_document(batch: Any, head: Any, row: Any, key: Any) -> Any:
        del batch, head
        return of_token[row] == of_token[key]

    sizes = (None, None, case.seqlen_q, case.seqlen_kv)
    blocks = create_block_mask(same_document, *sizes, device=q.device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend() -> Any:
        return compiled(q, k, v, block_mask=blocks)

    return Run(kernel=attend, end_to_end=attend)


def _documents(q: Any, case: Case) -> Any:
    import torch

    return torch.from_numpy(documents(case.seqlen_kv)).to(q.device)


BESIDE = {
    ("plain", LONG): [Baseline("pytorch-flash", "fp16", "torch", True, torch_ops.flash)],
    ("window-1023", LONG): [Baseline("pytorch-flash", "fp16", "torch", True, _windowed)],
    ("mask-documents", WHOLE): [Baseline("pytorch-sdpa-mask", "fp16", "torch", False, _masked)],
}
FLEX = Baseline("pytorch-flex", "fp16", "torch", False, _compiled)
