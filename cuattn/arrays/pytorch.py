"""Tensors of PyTorch, whose memory is looked at without DLPack, and without importing PyTorch.

A tensor need not be plain memory: `torch.Tensor` is also what FakeTensor, DTensor, sparse, nested
and vmapped tensors are, and some of them have the address 0. Only strided memory of its own passes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from ..errors import ArgumentError
from .view import CPU, CUDA, View

__all__ = [
    "check_of_tensors",
    "empty_tensor",
    "forward_mode",
    "look_at_plain",
    "maker_of_tensors",
    "note_write",
    "place_of_tensor",
    "stream_asked_of",
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


def look_at_plain(x: Any, key: list[Any], addresses: list[int]) -> bool:
    """Add a tensor's address, and all else that `view_tensor` would see of it, to a key.

    Tensors with equal keys are treated alike, so that a call that has been made before need not
    look at them closely. Parameters of models are plain too, where no gradients are recorded.

    Parameters
    ----------
    x : torch.Tensor or torch.nn.Parameter
        Of no class that is derived from these.
    key : list
    addresses : list of int

    Returns
    -------
    bool
        Whether it is one that `view_tensor` takes as it is, but for tangents.
    """
    try:
        if (
            x.is_neg()
            or not x.is_cuda
            or (x.requires_grad and sys.modules["torch"].is_grad_enabled())
        ):
            return False
        address = x.data_ptr()
        key += (x.shape, x.stride(), x.dtype, x.get_device(), address % 16)
    except RuntimeError:  # sparse, nested, or under a transform of torch.func
        return False
    addresses.append(address)
    return bool(address)


def check_of_tensors(tensors: Sequence[Any]) -> Callable[..., bool]:
    """Return what says whether others are like these to `look_at_plain`, but for addresses.

    It is what PyTorch's compiler guards its code with: of each tensor the class, shape, strides,
    type, device, whether it requires gradients, and the keys by which PyTorch dispatches, among
    them those of its transforms and modes. It must not be asked about nested tensors: they end the
    process.

    Raises
    ------
    LookupError
        If this PyTorch has no such check, or some of these require gradients: whether they are
        recorded is another question.
    """
    if not tensors:
        return lambda: True
    if any(x.requires_grad for x in tensors):
        raise LookupError
    try:
        check: Callable[..., bool] = (
            sys.modules["torch"]
            ._C._dynamo.guards.TensorGuards(
                *tensors,
                dynamic_dims_sizes=[[*x.shape] for x in tensors],
                dynamic_dims_strides=[[*x.stride()] for x in tensors],
            )
            .check
        )
        # It has to tell shapes apart, whatever its arguments mean in another version.
        is_one = check(*tensors) and not check(*[x[None] for x in tensors])
    except (AttributeError, RuntimeError, TypeError):
        is_one = False
    if not is_one:
        raise LookupError
    return check


def forward_mode() -> Any:
    """Return PyTorch's module of forward-mode differentiation, whose level is -1 outside of it."""
    return sys.modules["torch"].autograd.forward_ad


def stream_asked_of(x: Any) -> Callable[[int], int]:
    """Return what says the address of the current stream of a tensor's PyTorch on a GPU."""
    torch = torch_of(x)
    # What code of its own compiler calls, for it makes no object of the stream.
    ask: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if ask is None:
        return lambda ordinal: int(torch.cuda.current_stream(ordinal).cuda_stream)
    return ask


def maker_of_tensors(
    like: Any, shape: tuple[int, ...], dtype: str
) -> Callable[[Any], tuple[Any, int] | None]:
    """Return what makes contiguous tensors where another one is, and returns their address too.

    Parameters
    ----------
    like : torch.Tensor
        Of the kind of those that it is given.
    shape : tuple of int
    dtype : str

    Returns
    -------
    function of a tensor
        It returns None where a mode of PyTorch makes tensors of a class of its own.
    """
    torch: Any = sys.modules["torch"]
    of_dtype, plain = getattr(torch, dtype), torch.Tensor
    # To name shape, type and device takes a microsecond more, to name the order of axes a quarter.
    empty: Callable[[Any], Any] = torch.empty_like
    in_order = partial(torch.empty_like, memory_format=torch.contiguous_format)
    if (like.shape, like.dtype) != (shape, of_dtype):

        def empty(like: Any) -> Any:
            return torch.empty(shape, dtype=of_dtype, device=like.device)

    elif empty(like).stride() != in_order(like).stride():
        empty = in_order

    def make(like: Any) -> tuple[Any, int] | None:
        x = empty(like)
        return (x, x.data_ptr()) if type(x) is plain else None

    return make


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
