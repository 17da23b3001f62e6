"""A stream beside the caller's, on which bytes travel while the caller's computes."""

from __future__ import annotations

from typing import Any

from ..arrays.view import cupy_module

__all__ = ["OnStream", "SideStream", "is_on_gpu"]


# CUDA takes the highest priority that there is for any beyond it.
_FIRST = -100


class SideStream:
    """A stream of CuPy's current device, whose kernels go before those of others that wait too.

    NCCL's kernels need a few multiprocessors, and attention's stay on theirs until they are done.

    Attributes
    ----------
    stream : cupy.cuda.Stream
    """

    def __init__(self) -> None:
        self._cuda = cupy_module().cuda
        self.stream = self._cuda.Stream(non_blocking=True, priority=_FIRST)

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
