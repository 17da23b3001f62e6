"""Tensors of PyTorch, whose memory is looked at without DLPack, and without importing PyTorch.

A tensor need not be plain memory: `torch.Tensor` is also what FakeTensor, DTensor, sparse, nested
and vmapped tensors are, and some of them have the address 0. Only strided memory of its own passes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from ..errors import ArgumentError
from .view import CPU, CUDA, View

__all__ = [
    "empty_tensor",
    "note_write",
    "place_of_tensor",
    "plain_tensors",
    "stream_of_tensor",
    "torch_of",
    "view_tensor",
]

_PLAIN = "a plain tensor: dense and strided, with memory of its own"
_UNTRACED = "a tensor whose sizes are numbers (torch.jit.trace sees nothing of what is done to it)"
_GRADIENTS = "a tensor that requires no gradients (call it under torch.no_grad(), or detach() it)"
_TANGENT = "a tensor without a tangent of forward-mode differentiation, which would be lost"


def torch_of(x: Any) -> Any:
    """Return the module torch if `x` is a tensor of it, else None."""
    torch: Any = sys.modules.get("torch")
    # While it is being imported it has no tensors yet.
    return torch if torch is not None and isinstance(x, getattr(torch, "Tensor", ())) else None


def place_of_tensor(x: Any, name: str) -> tuple[int, int]:
    """Return where a tensor is: DLPack's device type and the ordinal.

    Raises
    ------
    ArgumentError
        If it is neither on an NVIDIA GPU nor in host memory.
    """
    if x.is_cuda and sys.modules["torch"].version.hip is None:
        return CUDA, x.get_device()
    if x.is_cpu:
        return CPU, 0
    raise ArgumentError(name, x, f"on an NVIDIA GPU or in host memory, not on {x.device}")


def stream_of_tensor(x: Any) -> int:
    """Return the address of PyTorch's current stream on a tensor's GPU."""
    torch: Any = sys.modules["torch"]
    # What code of its own compiler calls, for it makes no object of the stream.
    ask = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if ask is None:
        return int(torch.cuda.current_stream(x.device).cuda_stream)
    return int(ask(x.get_device()))


def view_tensor(x: Any, name: str) -> View:
    """Look at a tensor, whose pending work comes first in PyTorch's current stream.

    What a negative bit negates only when it is read (``x.conj().imag``) is copied, so the view is
    read-only; and so is one of a tensor that requires gradients, which sees no write of ours.

    Raises
    ------
    ArgumentError
        If the tensor is no plain memory, is traced, or wants derivatives that it would not get.
    """
    torch: Any = sys.modules["torch"]
    readonly = False
    if not (
        type(x) is torch.Tensor
        and x.layout is torch.strided
        and not (x.requires_grad or x.is_nested or x.is_neg())
    ):
        x, readonly = _plain(torch, x, name)
    # Tangents exist only inside a level of forward-mode differentiation; to ask for one takes long.
    forward_ad = torch.autograd.forward_ad
    if (
        getattr(forward_ad, "_current_level", 0) >= 0
        and forward_ad.unpack_dual(x).tangent is not None
    ):
        raise ArgumentError(name, x, _TANGENT)
    try:
        ptr = x.data_ptr()
    except RuntimeError as error:  # under a transform of torch.func there is no storage
        raise ArgumentError(name, x, f"{_PLAIN} ({_first_line(error)})") from None
    shape = x.shape
    if shape and type(shape[0]) is not int:
        raise ArgumentError(name, x, _UNTRACED)
    if not ptr and all(shape):
        raise ArgumentError(name, x, f"{_PLAIN} (its address is 0)")
    device = (CUDA, x.get_device()) if x.is_cuda else place_of_tensor(x, name)
    fields = ptr, tuple(shape), x.stride(), _name_of(x.dtype), device, readonly, x
    # As `View(*fields)` in half the time.
    return tuple.__new__(View, fields)


def plain_tensors(tensors: Iterable[Any], out: Any = None) -> tuple[list[int], list[Any]] | None:
    """Return the addresses of tensors, and all else that `view_tensor` would see of them as a key.

    None if there is one that it would change, refuse, or look at more closely. Tensors with equal
    keys are treated alike, so that a call need not look at each in turn if it has been made before.

    Parameters
    ----------
    tensors : iterable of object
        That are read. Parameters of models are plain too, where no gradients are recorded.
    out : object, optional
        That is written; it comes last.
    """
    torch: Any = sys.modules["torch"]
    plain, parameter, strided = torch.Tensor, torch.nn.Parameter, torch.strided
    if getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0:
        return None
    if out is not None:
        if type(out) is not plain or out.requires_grad:
            return None
        tensors = (*tensors, out)
    addresses: list[int] = []
    key: list[Any] = []
    try:
        for x in tensors:
            if type(x) is not plain and type(x) is not parameter:
                return None
            if x.layout is not strided or not x.is_cuda or x.is_nested or x.is_neg():
                return None
            if x.requires_grad and torch.is_grad_enabled():
                return None
            address = x.data_ptr()
            addresses.append(address)
            key += x.shape, x.stride(), x.dtype, x.get_device(), address % 16
    except RuntimeError:  # under a transform of torch.func there is no storage
        return None
    return (addresses, key) if all(addresses) else None


def empty_tensor(like: Any, shape: tuple[int, ...], dtype: str) -> View:
    """Return a view of a new contiguous tensor on the GPU of another one."""
    torch: Any = sys.modules["torch"]
    of_dtype = getattr(torch, dtype)
    # To name shape, type and device costs a microsecond more, which outputs mostly need not.
    if type(like) is torch.Tensor and like.dtype is of_dtype and like.shape == shape:
        x = torch.empty_like(like, memory_format=torch.contiguous_format)
    else:
        x = torch.empty(shape, dtype=of_dtype, device=like.device)
    if type(x) is not torch.Tensor:  # as in a mode that makes them of a class of its own
        return view_tensor(x, "out")
    fields = x.data_ptr(), shape, x.stride(), dtype, (CUDA, x.get_device()), False, x
    return tuple.__new__(View, fields)


def note_write(x: Any) -> None:
    """Let autograd know that a tensor is written, as PyTorch's own functions do."""
    torch = torch_of(x)
    if torch is not None and not x.is_inference():
        torch.autograd.graph.increment_version(x)


def _plain(torch: Any, x: Any, name: str) -> tuple[Any, bool]:
    """Return a tensor as plain memory, and whether it must not be written to."""
    # What such a class computes is not in its memory; others only add methods.
    if type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise ArgumentError(name, x, f"{_PLAIN}, not {type(x).__name__}")
    place_of_tensor(x, name)
    if x.layout is not torch.strided or x.is_nested:
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise ArgumentError(name, x, f"{_PLAIN}, not {kind}")
    readonly = False
    if x.requires_grad:
        if torch.is_grad_enabled():
            raise ArgumentError(name, x, _GRADIENTS)
        x, readonly = x.detach(), True
    if x.is_neg():
        x, readonly = x.resolve_neg(), True
    return x, readonly


@cache
def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].split(". ", 1)[0]
