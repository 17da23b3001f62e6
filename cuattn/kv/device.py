"""The memory of a KV cache on a GPU, and what all calls on it have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import Caller, on_device
from ..arrays.device import current_device
from ..arrays.streams import is_capturing
from ..arrays.view import CUDA, View, as_cupy, contiguous, cupy_module, view_cupy
from ..common.remember import Remembered
from ..compile.launch import Buffers
from ..errors import ArgumentError, NoGPUError, UnsupportedError
from ..plan.repeated import Repetitions
from ..presets import resolve
from .geometry import KVGeometry
from .memory import Memory
from .options import check_choices

__all__ = ["SCHEME", "STORE", "DeviceMemory", "direct", "new_memory", "store_values"]

# Addresses of a cache that all its kernels get, null what it has not; the order of
# `DeviceMemory.attend_addresses`.
STORE = ("units", "pages", "lengths", "k_offset", "bare", "fine", "coarse")

# Its operands and options are checked as those of a cache's calls have to be.
SCHEME = resolve("int8-token")

# Counters of a new cache; calls that want more get more.
_COUNTERS = 4096

# Kinds of calls, of each method, that a cache remembers, at a few kilobytes each.
_REMEMBERED = 256


class DeviceMemory(Memory):
    """The memory as arrays of CuPy, on its current device; see `Memory`.

    Attributes
    ----------
    device : tuple of int
        DLPack's type and the ordinal.
    repetitions : Repetitions
        Calls of `KVCache.attend`.

    Raises
    ------
    NoGPUError, UnsupportedError
        If there is no GPU that can be used.
    """

    def __init__(self, geometry: KVGeometry, smooth_k: bool) -> None:
        self.device = (CUDA, current_device().ordinal)
        self._cupy = cupy_module()
        super().__init__(geometry, smooth_k, self._cupy)
        self._refused = self._cupy.zeros(1, np.int32)
        # Graphs go on using the counters that they were captured with.
        self._counters = [self._cupy.zeros(_COUNTERS, np.uint32)]
        self._counted = _COUNTERS, _address(self._counters[0])
        units, pages, offset = map(_address, (self.units, self.pages, self.k_offset))
        lengths, limits = map(_address, (self.lengths, self.limits))
        store = (units, pages, lengths, offset, *map(_address, (self.bare, self.fine, self.coarse)))
        self.attend_addresses = store
        self.append_addresses = (*store, limits, _address(self.fixed))
        self.refused_address = _address(self._refused)
        self._remembered: dict[Callable[..., Any], Remembered[..., Any]] = {}
        self.repetitions = Repetitions()
        # The first call may be on any stream.
        self._cupy.cuda.get_current_stream().synchronize()

    def prepared(self, prepare: Callable[..., Any], *key: Any) -> Any:
        """Return what a function makes of this cache's geometry and a key; remembered."""
        remembered = self._remembered.get(prepare)
        if remembered is None:
            remembered = Remembered(partial(prepare, self.geometry), _REMEMBERED)
            self._remembered[prepare] = remembered
        return remembered(*key)

    # ---- where the arrays are

    def sent(self, x: NDArray[Any]) -> Any:
        """Return an array of the host as one of the GPU; waits for nothing."""
        self._refuse_capture("what comes from the host")
        return self._cupy.asarray(x)

    def to_host(self, x: Any) -> Any:
        """Return an array of the GPU as one of the host."""
        return self._cupy.asnumpy(x)

    def call_on(self, stream: Any) -> AbstractContextManager[object]:
        """Return a context in which a caller's stream is the current one, on the cache's device.

        Raises
        ------
        UnsupportedError
            If it is being captured: what is done in the context takes arrays from the host.
        """
        return self._entered(stream)

    @contextmanager
    def _entered(self, stream: Any) -> Iterator[None]:
        with self.on_device(), Caller(self.units, stream):
            self._refuse_capture("this change of a cache")
            self.settle()
            yield

    def on_device(self) -> AbstractContextManager[object]:
        """Return a context in which the cache's device is the current one."""
        return on_device(self.device[1])

    def is_captured(self) -> bool:
        """Whether CuPy's current stream is being captured into a graph."""
        return is_capturing(self._cupy.cuda.get_current_stream().ptr)

    def _refuse_capture(self, what: str) -> None:
        if self.is_captured():
            raise UnsupportedError(f"{what} cannot be captured into a graph")

    def wait(self) -> None:
        """Wait for all work of the GPU, whatever its stream."""
        with self.on_device():
            self._refuse_capture("what waits for the GPU")
            self._cupy.cuda.Device().synchronize()

    def fetch(self) -> tuple[NDArray[np.int64], bool]:
        """Return the lengths, and whether an append has been refused since `forget_refusal`."""
        self.wait()
        with self.on_device():
            lengths = self.to_host(self.lengths).astype(np.int64)
            return lengths, bool(self.to_host(self._refused)[0])

    def forget_refusal(self) -> None:
        """Note that a refused append is of no interest any more."""
        with self.on_device():
            self._refused.fill(0)

    def counters(self, count: int) -> int:
        """Return the address of at least so many counters, all of them 0."""
        most, address = self._counted
        if count > most:
            self._refuse_capture("the first call with so many queries")
            self._counters.append(self._cupy.zeros(count, np.uint32))
            address = _address(self._counters[-1])
            self._counted = count, address
        return address

    def shorten(self, lengths: Any, stream: Any) -> None:
        """Shorten sequences to at most the lengths in an array of the GPU; waits for nothing."""
        with self.on_device():
            caller = Caller(lengths, stream)
            seen = self.look_at_integers(caller, lengths, "lengths", self.geometry.batch)
            self.host_state.check_cut(lengths)
            with caller:
                is_captured = self.is_captured()
                after = self.host_state.forgotten(replayed=is_captured, may_begin=True)
                if is_captured:  # which nothing undoes
                    self.host_state = after
                with self.transaction(after, self.write_lengths):
                    most = self._cupy.maximum(as_cupy(seen), 0)
                    self._cupy.minimum(self.lengths, most.astype(np.int32), out=self.lengths)

    # ---- arrays of the caller

    def look(self, caller: Caller, x: Any, name: str) -> View:
        """Look at an array of the cache's GPU.

        Raises
        ------
        ArgumentError
            If it is anything else.
        """
        seen = caller.look(x, name)
        self.check_device(x, name, seen.device)
        return seen

    def look_at_integers(self, caller: Caller, x: Any, name: str, count: int) -> View:
        """Look at an array of so many integers.

        Raises
        ------
        ArgumentError
            If it is anything else.
        """
        seen = self.look(caller, x, name)
        if seen.shape != (count,) or seen.dtype not in ("int32", "int64"):
            raise ArgumentError(name, x, f"int32 or int64 [{count}]")
        if seen.ptr % np.dtype(seen.dtype).itemsize:
            raise ArgumentError(name, x, "at a multiple of the size of its elements")
        return seen

    def check_device(self, x: Any, name: str, device: tuple[int, int]) -> None:
        """Check where an array is.

        Raises
        ------
        ArgumentError
            If it is not on the cache's GPU.
        """
        if device != self.device:
            raise ArgumentError(name, x, f"on GPU {self.device[1]}, as the cache is")


def new_memory(geometry: KVGeometry, smooth_k: bool, device: str | None) -> Memory:
    """Return the memory of a cache without tokens, where `KVCache` is to have it.

    Raises
    ------
    ArgumentError
        If an option is wrong.
    NoGPUError, UnsupportedError
        If there is no GPU that can be used.
    """
    check_choices(smooth_k, device)
    if device is not None:
        return Memory(geometry, smooth_k)
    try:
        return DeviceMemory(geometry, smooth_k)
    except NoGPUError as error:
        raise NoGPUError(f'{error}; device="cpu" keeps a cache in host memory') from None


def direct(x: View) -> View:
    """Return an array whose last axis is contiguous: a copy, unless it is already."""
    return x if x.strides[-1:] in ((), (1,)) else contiguous(x)


def store_values(geometry: KVGeometry, buffers: Buffers) -> dict[str, int]:
    """Return the members of KvStore in kernels_cu/kv/kv_params.cuh."""
    return {
        **{name: buffers[name] for name in STORE},
        "page_stride": geometry.page_stride,
        "head_stride": geometry.head_stride,
        "page_units": geometry.page_units,
        "pages_per_sequence": geometry.pages_per_sequence,
        "batch": geometry.batch,
        "num_kv_heads": geometry.num_kv_heads,
        "first_units": geometry.first_units,
        "recent_units": geometry.recent_units,
    }


def _address(x: Any) -> int:
    """Address of an array of CuPy, 0 for none."""
    return 0 if x is None else view_cupy(x).ptr
