"""What cuattn cannot do of a call: why, for counts, and as an error that names the argument."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

from ..arrays.device import gpu_status
from ..errors import ArgumentError

__all__ = ["Refusal", "refusal_of_tensors"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_HEAD_DIM = 512


class Refusal(NamedTuple):
    """Why a call is not for cuattn.

    Attributes
    ----------
    reason : str
        In a word or a few, by which calls are counted.
    argument, value, expected
        As of `ArgumentError`.
    """

    reason: str
    argument: str
    value: Any
    expected: str

    def error(self) -> ArgumentError:
        """Return it as an error."""
        return ArgumentError(self.argument, self.value, self.expected)


def refusal_of_tensors(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    *,
    names: tuple[str, str, str] = ("q", "k", "v"),
    backward: str | None = None,
) -> Refusal | None:
    """Return why cuattn cannot attend to tensors, whatever their shapes but for the head_dim.

    Parameters
    ----------
    q, k, v, attn_mask : Tensor
    names : tuple of str
        Of the first three, as the caller knows them.
    backward : str or None
        As of `cuattn.torch.attention`.
    """
    named = dict(zip(names, (q, k, v), strict=True))
    for name, x in named.items():
        if not isinstance(x, torch.Tensor):
            return Refusal("type", name, x, "a tensor of PyTorch")
        if x.is_nested or x.layout != torch.strided:
            return Refusal("layout", name, x, "a dense tensor, neither nested nor sparse")
        if x.dtype not in _DTYPES or x.dtype != q.dtype:
            expected = "float16, bfloat16 or float32, of all three the same"
            return Refusal("dtype", f"{name}.dtype", x.dtype, expected)
        if x.device != q.device:
            expected = f"{q.device}, the device of {names[0]}"
            return Refusal("device", f"{name}.device", x.device, expected)
        head_dim = x.shape[-1]
        if head_dim % 8 or not 0 < head_dim <= _MAX_HEAD_DIM:
            expected = "of a head_dim that is a multiple of 8 up to 512"
            return Refusal("head_dim", f"{name}.shape", tuple(x.shape), expected)
    if q.shape[-1] != k.shape[-1]:
        expected = f"of head_dim {q.shape[-1]}, that of {names[0]}"
        return Refusal("head_dim", f"{names[1]}.shape", tuple(k.shape), expected)
    if attn_mask is not None and attn_mask.dtype not in (*_DTYPES, torch.bool):
        expected = "bool, float16, bfloat16 or float32"
        return Refusal("mask", "attn_mask.dtype", attn_mask.dtype, expected)
    if why := _why_not_on(q.device.type, q.device.index):
        return Refusal("device", f"{names[0]}.device", q.device, why)
    if backward is None and torch.is_grad_enabled():
        for name, x in {**named, "attn_mask": attn_mask}.items():
            if x is not None and x.requires_grad:
                expected = "without gradients: under torch.no_grad() or detached"
                return Refusal("gradients", name, x, f'{expected}; or backward="torch"')
    return None


@cache
def _look_at_device(kind: str, index: int | None) -> str:
    """Return what a device would have to be for cuattn; nothing if it is."""
    if kind in ("cpu", "meta"):
        return ""
    if kind != "cuda" or torch.version.hip is not None:
        return "an NVIDIA GPU or host memory"
    if torch.cuda.get_device_capability(index) < (8, 0):
        return "a GPU of compute capability 8.0 or newer"
    answer, detail = gpu_status()
    return "" if answer == "ok" else f"a GPU that CuPy can use ({answer}: {detail})"


def _remembered(kind: str, index: int | None) -> str:
    return _look_at_device(kind, index)


# Dynamo calls it itself and takes its result for a constant.
_why_not_on = torch.compiler.assume_constant_result(_remembered)
