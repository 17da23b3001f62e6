"""`attach`: a model of diffusers whose attention cuattn answers, however its layers call it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from ..choice.scheme_plan import SchemePlan
from ..common.public import naming_keywords
from ..scheme import Scheme
from ..torch.replace import Replacement, replace
from .backend import OF_LAYER, backend_named

__all__ = ["attach"]


@naming_keywords
def attach(
    model: Any,
    scheme: str | Scheme | SchemePlan = "int8",
    *,
    leave_out: str | Iterable[str] = (),
    fallback: bool = True,
    backward: str | None = None,
) -> Replacement:
    """Let cuattn answer the attention of a model of diffusers.

    Layers that ask diffusers' dispatcher (Flux, Wan and others) get its backend "cuattn", so that
    `enable_parallelism` works; call this before. Layers that call PyTorch's function (UNets, Stable
    Diffusion 3, CogVideoX and others) get ours by `cuattn.torch.replace`.

    Parameters
    ----------
    model : torch.nn.Module
        A model such as ``pipeline.transformer`` or ``pipeline.unet``.
    scheme, leave_out, fallback, backward
        As for `cuattn.torch.replace`: a plan names layers such as ``"transformer_blocks.3"``, and
        ``leave_out="*.attn2"`` leaves the attention to the prompt as it is in a UNet.

    Returns
    -------
    cuattn.torch.Replacement
        With `calls`, `step` and `restore`; also a context.

    Raises
    ------
    ArgumentError
        As `cuattn.torch.replace`.
    UnsupportedError
        As `cuattn.diffusers.register`.
    """
    backend = backend_named(OF_LAYER)
    made = replace(model, scheme, leave_out=leave_out, fallback=fallback, backward=backward)
    for module in model.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            before = processor._attention_backend
            processor._attention_backend = backend
            made.on_restore(partial(setattr, processor, "_attention_backend", before))
    return made
