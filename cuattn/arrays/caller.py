"""The caller's side of a call on the GPU: device, stream, and arrays of whatever library."""

from __future__ import annotations

import sys
import threading
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import ArgumentError, NoGPUError, UnsupportedError
from .cuda_runtime import why_no_gpu
from .dlpack import view
from .pytorch import empty_tensor, place_of_tensor, stream_of_tensor, torch_of, view_tensor
from .streams import current_stream_of, hand_over
from .view import CUDA, View, check_address, check_steps, cupy_module, place, view_cupy

__all__ = ["LEGACY_STREAM", "Caller", "device_of", "numpy_dtype", "on_device", "stream_at"]

# CUDA's name of the legacy default stream, which is also called 0.
LEGACY_STREAM = 1

_AS_IT_IS = nullcontext()


class Caller:
    """The stream of one call, and how it looks at arrays; a context in which work is enqueued.

    Parameters
    ----------
    first : object
        The array that decides whose stream and whose outputs these are; on the current device.
    stream : object
        The caller's choice, if there is one; see `current_stream_of`.

    Attributes
    ----------
    stream : int
        Address of the stream of the call.
    is_torchs : bool
        Whether that is PyTorch's current one because the first array is its tensor.
    """

    def __init__(self, first: Any, stream: Any) -> None:
        self._cupy = cupy_module()
        self._first = first
        self._torch = torch_of(first)
        self._cupys: int = self._cupy.cuda.get_current_stream().ptr
        self.is_torchs = self._torch is not None and stream is None
        # Most tensors are of this class, not of one that is derived from it.
        self._plain_tensor = self._torch.Tensor if self.is_torchs else None
        if self.is_torchs:
            self.stream = stream_of_tensor(first)
        elif stream is None:
            self.stream = self._cupys
        else:
            self.stream = current_stream_of(first, stream)
        if self.stream == LEGACY_STREAM:
            self.stream = 0
        self._is_cupys = self.stream == self._cupys
        self._handed_over: int | None = None
        self._followed: tuple[int, ...] = ()
        self._foreign: list[View] = []
        self._entered: Any = None

    def look(self, x: Any, name: str) -> View:
        """Look at an array; pending work of its library on it comes first in the call's stream.

        Raises
        ------
        ArgumentError, UnsupportedError
            As `cuattn.arrays.dlpack.view` and `cuattn.arrays.pytorch.view_tensor`.
        """
        # An array whose library uses the same stream needs no hand-over, which takes microseconds.
        if type(x) is self._plain_tensor:
            return view_tensor(x, name)
        if isinstance(x, self._cupy.ndarray):
            seen = view_cupy(x)
            check_steps(x, name)
            if not seen.ptr:
                check_address(seen, x, name)
            if not self._is_cupys:
                self._follow(self._cupys, seen)
        elif torch_of(x) is not None:
            seen = view_tensor(x, name)
            if not self.is_torchs and seen.device[0] == CUDA:
                self._follow(current_stream_of(x), seen)
        else:
            seen = view(x, self._told(), name)
            self._foreign.append(seen)
        return seen

    def _told(self) -> int:
        """Return what libraries are told of the stream; see `hand_over`."""
        if self._handed_over is None:
            self._handed_over = hand_over(self.stream)
        return self._handed_over

    def _follow(self, producer: int, seen: View) -> None:
        """Let the call's stream wait for what is pending on a library's own, if that is another."""
        # Arrays of another device than the call's are refused as soon as all have been seen.
        if producer == self.stream or seen.device[1] != self._cupy.cuda.runtime.getDevice():
            return
        self._foreign.append(seen)
        if producer in self._followed or self._told() == -1:
            return
        self._followed += (producer,)
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream_at(producer))
        stream_at(self.stream).wait_event(event)

    def empty(self, shape: tuple[int, ...], dtype: str) -> View:
        """Return a view of a new array, of PyTorch if the first one is, else of CuPy."""
        if self._torch is not None:
            return empty_tensor(self._first, shape, dtype)
        return view_cupy(self._cupy.ndarray(shape, numpy_dtype(dtype)))

    def deliver(self, made: View | None) -> Any:
        """Return what `empty` made, if anything, as an array of the first one's library."""
        if made is None:
            return None
        array = made.owner
        if self._torch is not None:
            return array
        jax: Any = sys.modules.get("jax")
        if jax is None or not isinstance(self._first, jax.Array):
            return array
        from jax.dlpack import from_dlpack

        return from_dlpack(array)

    def __enter__(self) -> Caller:
        """Make the call's stream CuPy's current one."""
        if not self._is_cupys:
            self._entered = stream_at(self.stream)
            self._entered.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Go back to the stream of before."""
        if self._foreign and self._handed_over != -1:
            _keep_until_done(self._foreign, self._cupy.cuda.Event(disable_timing=True))
        if self._entered is not None:
            self._entered.__exit__(kind, error, trace)


def device_of(x: Any, name: str) -> tuple[int, int]:
    """Return where an array is: DLPack's device type and the ordinal.

    Raises
    ------
    ArgumentError
        If it is no array, or a tensor that is neither on an NVIDIA GPU nor in host memory.
    NoGPUError
        If it is on a GPU that this process cannot use.
    """
    if torch_of(x) is not None:
        return place_of_tensor(x, name)
    if isinstance(x, _cupy_arrays()):
        return CUDA, x.data.device_id  # x.__dlpack_device__() asks CUDA what kind of memory it is
    try:
        return place(*x.__dlpack_device__())
    except (AttributeError, BufferError, TypeError, ValueError):
        raise ArgumentError(name, x, "an array of CuPy, PyTorch, JAX or NumPy") from None
    except RuntimeError as error:
        if not hasattr(error, "status"):
            raise
        # Of CuPy: CUDA cannot be used, as in a forked process.
        raise NoGPUError(f"no usable GPU: {why_no_gpu(error)}") from None


def _cupy_arrays() -> Any:
    """Return the class of the arrays that CuPy has on NVIDIA's GPUs, if it is imported."""
    cupy: Any = sys.modules.get("cupy")
    if cupy is None or not hasattr(cupy, "ndarray") or cupy.cuda.runtime.is_hip:
        return ()
    return cupy.ndarray


def on_device(ordinal: int) -> AbstractContextManager[object]:
    """Return a context in which a GPU is CuPy's current one; switching takes microseconds."""
    cuda = cupy_module().cuda
    if cuda.runtime.getDevice() == ordinal:
        return _AS_IT_IS
    device: AbstractContextManager[object] = cuda.Device(ordinal)
    return device


@cache
def numpy_dtype(name: str) -> Any:
    """Return the dtype of NumPy and CuPy of that name; bfloat16 is one of ml_dtypes.

    Raises
    ------
    UnsupportedError
        If that is not installed.
    """
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise UnsupportedError(
            "arrays of bfloat16 need the package ml_dtypes; install it, or pass out="
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


# Arrays that their owner may free while the GPU still uses them, and the event behind that use.
_in_use: deque[tuple[Any, list[View]]] = deque()
_in_use_lock = threading.Lock()


def _keep_until_done(arrays: list[View], event: Any) -> None:
    """Keep arrays of libraries that know nothing of our stream until it has passed this point."""
    event.record()
    with _in_use_lock:
        while _in_use and _in_use[0][0].done:
            _in_use.popleft()
        _in_use.append((event, arrays))


class _Address:
    def __init__(self, stream: int) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream


@lru_cache(64)
def stream_at(address: int) -> Any:
    """Return CuPy's object for a stream of another library."""
    return cupy_module().cuda.Stream.from_external(_Address(address))
