"""Streams beside the caller's: bytes travel on one while others compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

from ..arrays.view import cupy_module

__all__ = ["OnStream", "SideStream", "as_current", "is_on_gpu"]


# CUDA takes the highest priority that there is for any beyond it.
_FIRST = -100


class SideStream:
    """A stream of CuPy's current device.

    Parameters
    ----------
    is_first : bool
        Whether its kernels go before those of other streams that wait too. NCCL's need a few
        multiprocessors, and attention's stay on theirs until they are done.

    Attributes
    ----------
    stream : cupy.cuda.Stream
    """

    def __init__(self, *, is_first: bool = True) -> None:
        self._cuda = cupy_module().cuda
        priority = {"priority": _FIRST} if is_first else {}
        self.stream = self._cuda.Stream(non_blocking=True, **priority)

    def follow(self) -> None:
        """Come after what is enqueued on CuPy's current stream."""
        self.stream.wait_event(self._event_on(self._cuda.get_current_stream()))

    def event(self) -> Any:
        """Return an event behind all that is enqueued here."""
        return self._event_on(self.stream)

    def _event_on(self, stream: Any) -> Any:
        event = self._cuda.Event(disable_timing=True)
        event.record(stream)
        return event


def as_current(stream: Any, torch: Any) -> AbstractContextManager[Any]:
    """Return a context in which a stream of CuPy's current device is the current one.

    Parameters
    ----------
    stream : cupy.cuda.Stream
    torch : module or None
        PyTorch, if it is to be its current one as well.
    """
    stack = ExitStack()
    stack.enter_context(stream)
    if torch is not None:
        device = cupy_module().cuda.runtime.getDevice()
        own = torch.cuda.ExternalStream(stream.ptr, device)
        stack.enter_context(torch.cuda.stream(own))
    return stack


def is_on_gpu(x: Any) -> bool:
    """Say whether an array of NumPy or CuPy is on a GPU."""
    return type(x).__module__.partition(".")[0] == "cupy"


class OnStream:
    """A transfer that is over at an event."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def wait(self) -> None:
        """See `cuattn.distributed.group.Transfer.wait`."""
        cupy_module().cuda.get_current_stream().wait_event(self._event)
