"""The packages of FlashAttention-2, 3 and 4, whose tensors are [B, N, H, D].

They take any strides but that of D, so ours are transposed views: tokens of a head then follow each
other in memory, which is no worse than their usual order. Causal masks are aligned at the last
query and key, as ours are (FlashAttention-2 from 2.1 on), and query heads may share a key head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..cases import Case
from ..ours import Run
from .fp8 import quantize_e4m3


def prepare_2(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind `flash_attn`; a single query goes to its function for caches."""
    import flash_attn

    return _float16(flash_attn, q, k, v, case)


def prepare_3(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind `flash_attn_interface`, of Hopper; a single query goes to its function for caches."""
    import flash_attn_interface

    return _float16(flash_attn_interface, q, k, v, case)


def prepare_4(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind `flash_attn.cute`, of Hopper and Blackwell."""
    from flash_attn import cute

    return _same(lambda: cute.flash_attn_func(*_tokens_first(q, k, v), causal=case.is_causal))


def prepare_3_fp8(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind FlashAttention-3 with operands in E4M3, a scale for each key head.

    The kernel's output is bfloat16, which its caller, who has float16, converts.
    """
    import torch
    from flash_attn_interface import flash_attn_func

    operands = {"q": q, "k": k, "v": v}
    codes = {name: torch.empty_like(x, dtype=torch.float8_e4m3fn) for name, x in operands.items()}
    by_head = case.batch, case.num_kv_heads
    # Query heads that share a key head share its scale.
    descales = {name: q.new_empty(by_head, dtype=torch.float32) for name in operands}
    options = {f"{name}_descale": descale for name, descale in descales.items()}
    out = torch.empty_like(q)

    def quantize() -> None:
        for name, x in operands.items():
            grouped, into = (y.unflatten(1, (case.num_kv_heads, -1)) for y in (x, codes[name]))
            descale = quantize_e4m3(grouped, into, axes=(2, 3, 4))
            descales[name].copy_(descale.reshape(by_head))

    def attend() -> Any:
        given = _tokens_first(*codes.values())
        return _output(flash_attn_func(*given, causal=case.is_causal, **options))

    def kernel() -> None:
        attend()

    def end_to_end() -> Any:
        quantize()
        return out.copy_(attend())

    quantize()
    return Run(kernel=kernel, end_to_end=end_to_end)


def _float16(library: Any, q: Any, k: Any, v: Any, case: Case) -> Run:
    given = _tokens_first(q, k, v)
    if case.seqlen_q > 1:
        return _same(lambda: library.flash_attn_func(*given, causal=case.is_causal))
    lengths = _lengths(q, case)
    # Shares the keys among CTAs, which the function for prompts does not.
    return _same(
        lambda: library.flash_attn_with_kvcache(
            *given, cache_seqlens=lengths, causal=case.is_causal
        )
    )


def _lengths(q: Any, case: Case) -> Any:
    import torch

    return torch.full((case.batch,), case.seqlen_kv, dtype=torch.int32, device=q.device)


def _same(attend: Callable[[], Any]) -> Run:
    """Return the run of a call that quantizes nothing."""

    def run() -> Any:
        return _output(attend())

    return Run(kernel=run, end_to_end=run)


def _tokens_first(*tensors: Any) -> list[Any]:
    """View tensors [B, H, N, D] as [B, N, H, D]."""
    return [x.transpose(1, 2) for x in tensors]


def _output(returned: Any) -> Any:
    """View the output as [B, H, N, D]; some releases return the log-sum-exp with it."""
    o = returned[0] if isinstance(returned, tuple) else returned
    return o.transpose(1, 2)
