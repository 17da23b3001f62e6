"""Other attention kernels, measured in the same run wherever they can be imported.

Each takes float16 CuPy arrays [B, H, N, D] through DLPack, so all work on the very same memory,
but for those that have a layout which these cannot be viewed as. All serve prompts, and query heads
that share a key head.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..cases import Case
from ..left_out import LeftOut, in_a_line
from ..ours import Run
from . import flash_attention, flash_infer, fp8, sage, torch_ops

FAMILY = "baseline"

# Those that baselines come in or work by, of which a record names the versions.
PACKAGES = (
    *("torch", "triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend"),
    *("flash-attn", "flash-attn-3", "flash-attn-4", "flashinfer-python"),
    *("sageattention", "comfy-kitchen"),
)


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
    square : bool
        Whether the causal mask is ours for as many keys as queries only: others align it at the
        first query and key.
    decodes : bool
        Whether it is made for a single query of each sequence, too.
    """

    name: str
    scheme: str
    module: str
    causal: bool
    prepare: Callable[[Any, Any, Any, Case], Run]
    square: bool = False
    decodes: bool = False

    def unavailable(self) -> str | None:
        """Return why it cannot be run here, or None if it can."""
        try:
            # First, so that what is linked with the same libraries finds PyTorch's.
            import torch

            importlib.import_module(self.module)
        except Exception as error:
            return f"{self.module} does not import: {in_a_line(error)}"
        return None if torch.cuda.is_available() else "PyTorch finds no GPU"

    def bind(self, q: Any, k: Any, v: Any, case: Case) -> Run:
        """Prepare a run on CuPy arrays and call it once, so that what fails fails here.

        Raises
        ------
        RuntimeError
            Whatever the library raised, or that it has another causal mask.
        """
        import torch

        if case.is_causal and self.square and case.seqlen_q != case.seqlen_kv:
            raise RuntimeError("has no causal mask that the last query and key align")
        try:
            q, k, v = (torch.from_dlpack(x) for x in (q, k, v))
            run = self.prepare(q, k, v, case)
            run.end_to_end()
            if run.kernel is not None and run.kernel is not run.end_to_end:
                run.kernel()
            torch.cuda.synchronize()
        except RuntimeError:
            raise
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return run


BASELINES = (
    Baseline("pytorch-flash", "fp16", "torch", True, torch_ops.flash, square=True, decodes=True),
    Baseline("pytorch-cudnn", "fp16", "torch", True, torch_ops.cudnn, square=True, decodes=True),
    Baseline(
        "flash-attention-2",
        "fp16",
        "flash_attn.flash_attn_interface",
        True,
        flash_attention.prepare_2,
        decodes=True,
    ),
    Baseline(
        "flash-attention-3",
        "fp16",
        "flash_attn_interface",
        True,
        flash_attention.prepare_3,
        decodes=True,
    ),
    Baseline(
        "flash-attention-3-fp8",
        "fp8",
        "flash_attn_interface",
        True,
        flash_attention.prepare_3_fp8,
    ),
    Baseline("flash-attention-4", "fp16", "flash_attn.cute", True, flash_attention.prepare_4),
    Baseline("flashinfer", "fp16", "flashinfer", True, flash_infer.prepare, decodes=True),
    Baseline("cudnn-fp8", "fp8", "cudnn", True, fp8.cudnn_fp8, square=True),
    Baseline(
        "sageattention-1",
        "int8-fp16",
        "sageattention.quant_per_block",
        True,
        sage.prepare_1,
        square=True,
    ),
    Baseline(
        "sageattention-2-fp16",
        "int8-fp16",
        "sageattention.quant",
        True,
        sage.prepare_2_fp16,
        square=True,
    ),
    Baseline(
        "sageattention-2-fp8",
        "int8-fp8",
        "sageattention.quant",
        True,
        sage.prepare_2_fp8,
        square=True,
    ),
    Baseline("comfy-kitchen", "int8", "comfy_kitchen", False, torch_ops.comfy_kitchen),
)


def present(left_out: LeftOut) -> list[Baseline]:
    """Return the baselines that can be run here, and tell why the others cannot."""
    missing = {baseline.name: baseline.unavailable() for baseline in BASELINES}
    for name, reason in missing.items():
        if reason is not None:
            left_out(name, reason)
    return [baseline for baseline in BASELINES if missing[baseline.name] is None]


def bound(baseline: Baseline, q: Any, k: Any, v: Any, case: Case, left_out: LeftOut) -> Run | None:
    """Prepare a baseline's run; None if it has no such form or fails, which is told."""
    if case.is_causal and not baseline.causal:
        left_out(f"{baseline.name}, causal", "has no causal mask")
        return None
    try:
        return baseline.bind(q, k, v, case)
    except RuntimeError as error:
        left_out(f"{baseline.name}, {case}", in_a_line(error))
        return None
