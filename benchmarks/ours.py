"""cuattn's own calls, prepared so that quantization can be timed apart from attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cuattn
from cuattn.scheme import resolve
from cuattn.spec import AttentionSpec

from .cases import Case

NAME = "cuattn"
FAMILY = AttentionSpec.source.removesuffix(".cu")


@dataclass(frozen=True)
class Run:
    """An attention call with its inputs bound; both forms return the output.

    Parameters
    ----------
    kernel : callable, optional
        On operands that are quantized beforehand; None where an implementation has no such form.
    end_to_end : callable
        From float16 inputs.
    """

    kernel: Callable[[], Any] | None
    end_to_end: Callable[[], Any]


def prepare(q: Any, k: Any, v: Any, case: Case, scheme: str) -> Run:
    """Bind one scheme to float16 CuPy arrays [B, H, N, D]."""
    import cupy

    out = cupy.empty_like(q)
    options = {"is_causal": case.is_causal, "scheme": scheme, "out": out}

    def end_to_end() -> Any:
        return cuattn.attention(q, k, v, **options)

    how = resolve(scheme)
    if how.qk == "fp16":
        return Run(kernel=end_to_end, end_to_end=end_to_end)
    q8 = cuattn.quantize(q, operand="q", scheme=scheme)
    k8 = cuattn.quantize(k, operand="k", scheme=scheme)
    v8 = cuattn.quantize(v, operand="v", scheme=scheme) if how.pv != "fp16" else v
    return Run(lambda: cuattn.attention(q8, k8, v8, **options), end_to_end)
