"""Which stream a call runs on, and what other libraries are told about it."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from .pytorch import stream_of_tensor, torch_of

__all__ = ["current_stream_of", "hand_over", "is_capturing"]


def current_stream_of(x: Any, explicit: Any = None) -> int:
    """Return the address of the stream that work on an array belongs on.

    Parameters
    ----------
    x : object
        An array; its device is the current one.
    explicit : int or stream, optional
        The caller's choice: an address, or an object with ``__cuda_stream__``, ``ptr`` or
        ``cuda_stream``. By default PyTorch's current stream for its tensors, else CuPy's.

    Raises
    ------
    ArgumentError
        If `explicit` is none of these.
    """
    if explicit is not None:
        return _address(explicit)
    if torch_of(x) is not None:
        return stream_of_tensor(x)
    import cupy

    return int(cupy.cuda.get_current_stream().ptr)


def hand_over(stream: int) -> int:
    """Return what `view` is to pass to producers so that they order their work before a stream.

    DLPack names the legacy default stream 1, and -1 asks for no ordering: a stream that is being
    captured into a graph cannot wait for one that is not.
    """
    if stream in (0, 1):
        return 1
    return -1 if is_capturing(stream) else stream


def is_capturing(stream: int) -> bool:
    """Whether a stream is being captured into a graph, which the legacy default one cannot be."""
    if stream in (0, 1):
        return False
    import cupy

    return bool(cupy.cuda.runtime.streamIsCapturing(stream))


def _address(stream: Any) -> int:
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    if hasattr(stream, "__cuda_stream__"):
        _, address = stream.__cuda_stream__()
        return int(address)
    for attribute in ("ptr", "cuda_stream"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    raise ArgumentError("stream", stream, "an address or an object with __cuda_stream__")
