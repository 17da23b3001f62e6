"""Other attention kernels, measured in the same run wherever they can be imported.

Each takes float16 CuPy arrays [B, H, N, D] through DLPack, so all work on the very same memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import cudnn_fp8
from .cases import Case
from .ours import Run

FAMILY = "baseline"


@dataclass(frozen=True)
class Baseline:
    """One implementation by others.

    Parameters
    ----------
    name : str
        Stands as the implementation in records.
    scheme : str
        What it computes, in our scheme names' manner.
    module : str
        What has to be importable.
    causal : bool
        Whether it has a causal mask.
    prepare : callable
        From (q, k, v, case), PyTorch tensors and the shape, the bound call.
    """

    name: str
    scheme: str
    module: str
    causal: bool
    prepare: Callable[[Any, Any, Any, Case], Run]

    def unavailable(self) -> str | None:
        """Return why it cannot be run here, or None if it can."""
        try:
            # First, so that what is linked with the same libraries finds PyTorch's.
            import torch

            importlib.import_module(self.module)
        except Exception as error:
            return f"{self.module} does not import: {error}"
        return None if torch.cuda.is_available() else "PyTorch finds no GPU"

    def bind(self, q: Any, k: Any, v: Any, case: Case) -> Run:
        """Prepare a run on CuPy arrays and call it once, so that what fails fails here.

        Raises
        ------
        RuntimeError
            Whatever the library raised.
        """
        import torch

        try:
            run = self.prepare(*(torch.from_dlpack(x) for x in (q, k, v)), case)
            run.end_to_end()
            torch.cuda.synchronize()
        except RuntimeError:
            raise
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return run


def _sdpa(backend: str) -> Callable[[Any, Any, Any, Case], Run]:
    def prepare(q: Any, k: Any, v: Any, case: Case) -> Run:
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

    return prepare


def _sageattention(q: Any, k: Any, v: Any, case: Case) -> Run:
    from sageattention import core

    # sageattn() subtracts K's mean in place; the others must not see that.
    k = k.clone()
    attend = core.attn_true if case.is_causal else core.attn_false
    q8, q_scale, k8, k_scale = core.per_block_int8(q, k - k.mean(dim=2, keepdim=True))
    return Run(
        kernel=lambda: attend(q8, k8, v, q_scale, k_scale, output_dtype=q.dtype),
        end_to_end=lambda: core.sageattn(q, k, v, is_causal=case.is_causal),
    )


def _comfy_kitchen(q: Any, k: Any, v: Any, case: Case) -> Run:
    import comfy_kitchen

    quantized = comfy_kitchen.prequantize_int8_attention(q, k, v)
    return Run(
        kernel=lambda: comfy_kitchen.int8_attention_from_prequantized(quantized),
        end_to_end=lambda: comfy_kitchen.int8_attention(q, k, v),
    )


BASELINES = (
    Baseline("pytorch-flash", "fp16", "torch", True, _sdpa("FLASH_ATTENTION")),
    Baseline("pytorch-cudnn", "fp16", "torch", True, _sdpa("CUDNN_ATTENTION")),
    Baseline("cudnn-fp8", "fp8", "cudnn", True, cudnn_fp8.prepare),
    Baseline("sageattention-1", "int8-fp16", "sageattention", True, _sageattention),
    Baseline("comfy-kitchen", "int8", "comfy_kitchen", False, _comfy_kitchen),
)


def present() -> list[Baseline]:
    """Return the baselines that can be run here, and say why the others cannot."""
    missing = {baseline.name: baseline.unavailable() for baseline in BASELINES}
    for name, reason in missing.items():
        if reason is not None:
            print(f"baseline {name} left out: {reason}", flush=True)
    return [baseline for baseline in BASELINES if missing[baseline.name] is None]


def bound(baseline: Baseline, q: Any, k: Any, v: Any, case: Case) -> Run | None:
    """Prepare a baseline's run; None if it has no such form or fails, which is said."""
    if case.is_causal and not baseline.causal:
        return None
    try:
        return baseline.bind(q, k, v, case)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"baseline {baseline.name}, {case}: {reason}", flush=True)
        return None
