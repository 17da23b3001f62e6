"""cuattn's own calls, prepared so that quantization can be timed apart from attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import cuattn

from ..arrays.device import current_device, target
from ..errors import UnsupportedError
from ..operands.operand import DTYPES
from ..plan.kernels import attention_spec
from ..presets import resolve
from ..reference.layout import pad_head_dim
from ..scheme import Scheme
from .cases import HOST, Case
from .left_out import LeftOut, in_a_line

NAME = "cuattn"
S = TypeVar("S", str, Scheme)


@dataclass(frozen=True)
class Run:
    """An attention call with its inputs bound.

    Parameters
    ----------
    kernel : callable, optional
        On operands that are quantized beforehand; None where an implementation has no such form.
        Returns the output, or None where it has a type that CuPy does not know.
    end_to_end : callable
        From float16 inputs; returns the output.
    """

    kernel: Callable[[], Any] | None
    end_to_end: Callable[[], Any]


def family(scheme: str | Scheme, case: Case, dtype: str = "float16") -> str:
    """Return the name of the kernels that serve a case on the current GPU.

    Raises
    ------
    UnsupportedError
        If none does.
    """
    facts = target(current_device().arch)
    padded = pad_head_dim(case.head_dim)
    spec = attention_spec(resolve(scheme), padded, DTYPES[dtype], case.is_causal, facts)
    return spec.function


def supported_schemes(schemes: Iterable[S], left_out: LeftOut) -> list[S]:
    """Return the schemes that the current GPU has kernels of, and tell what it lacks for others."""
    found = []
    for scheme in schemes:
        try:
            family(scheme, HOST)
        except UnsupportedError as error:
            left_out(resolve(scheme).name, in_a_line(error))
        else:
            found.append(scheme)
    return found


def prepare(q: Any, k: Any, v: Any, case: Case, scheme: str | Scheme, **scores: Any) -> Run:
    """Bind one scheme to float16 CuPy arrays [B, H, N, D], V [B, H, N, Dv], with options."""
    import cupy

    out = cupy.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    options = {"is_causal": case.is_causal, "scheme": scheme, "out": out, **scores}

    def end_to_end() -> Any:
        return cuattn.attention(q, k, v, **options)

    how = resolve(scheme)
    if how.qk == "fp16":
        return Run(kernel=end_to_end, end_to_end=end_to_end)
    if how.smooth_q != "none" or "int4" in (how.qk, how.pv):
        # What is quantized beforehand has to be unpacked, and the products with Q's means are made.
        return Run(kernel=None, end_to_end=end_to_end)
    q8 = cuattn.quantize(q, operand="q", scheme=scheme)
    if how.pv == "fp16":
        k8, v8 = cuattn.quantize(k, operand="k", scheme=scheme), v
    else:
        k8, v8 = cuattn.quantize_kv(k, v, scheme=scheme)
    return Run(lambda: cuattn.attention(q8, k8, v8, **options), end_to_end)
