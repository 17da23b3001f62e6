"""Kernels with all of their arguments but the addresses, so that a call has little left to do."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from struct import Struct
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..arrays.device import Device
from ..arrays.view import cupy_module
from ..common.sizes import round_up
from .jit import Spec, begin, load
from .params import TENSOR_MAP, record
from .tensor_map import TensorMap

__all__ = ["NULL", "Buffers", "Clear", "Launch", "enqueue", "loaded"]

# How `record` spells a pointer; integers of its own kind do not occur.
_POINTER = np.dtype("<u8")

# Of parts of the workspace: what vector loads need, and whole lines of the L2 cache.
_ALIGNMENT = 256

# The number of the null pointer.
NULL = 0


AnyLaunch = TypeVar("AnyLaunch", bound="Launch | Clear")


class LaunchSpec(Spec, Protocol):
    """A kernel that can be launched."""

    @property
    def params_file(self) -> str:
        """File under kernels_cu/ that declares the struct that the kernel takes."""

    @property
    def num_threads(self) -> int:
        """Threads of a CTA."""


class Buffers:
    """Numbers the addresses of a call: null, the given ones by name, then parts of one workspace.

    Parameters
    ----------
    *given : str
        Names of the addresses that `addresses` will be given, in this order.
    """

    def __init__(self, *given: str) -> None:
        self._numbers = {name: number for number, name in enumerate(given, 1)}
        self._offsets: list[int] = []
        self.nbytes = 0

    def __getitem__(self, name: str) -> int:
        """Return the number of a given address."""
        return self._numbers[name]

    def take(self, nbytes: int) -> int:
        """Reserve a part of the workspace and return its number."""
        self._offsets.append(self.nbytes)
        self.nbytes += round_up(nbytes, _ALIGNMENT)
        return len(self._numbers) + len(self._offsets)

    def addresses(self, given: tuple[int, ...], workspace: int) -> tuple[int, ...]:
        """Return the addresses by their numbers, of a call with its workspace at an address."""
        return (0, *given, *[workspace + offset for offset in self._offsets])


class Launch:
    """A kernel with its grid and its arguments, in which only addresses are missing.

    It holds no state of a call, so threads may share it.
    """

    def __init__(
        self, spec: LaunchSpec, device: Device, grid: tuple[int, ...], values: Mapping[str, Any]
    ) -> None:
        """Bind a kernel, and begin to compile it if that has not been done; then `load` it.

        Parameters
        ----------
        spec : spec of a kernel
        device : Device
        grid : tuple of int
            CTAs along each axis, at least 1.
        values : mapping of str to object
            By names of the members of the kernel's parameter struct: numbers, for pointers their
            numbers in a `Buffers`, for tensor maps a `TensorMap`, or None for zeros, for nested
            structs mappings again, or None for zeros.
        """
        from cupy.cuda.function import CPointer

        template = np.zeros((), record(spec.params, spec.params_file))
        pointers: list[tuple[int, int]] = []
        maps: list[tuple[int, TensorMap]] = []
        _fill(template, values, 0, pointers, maps)
        self._writers = [
            *(_writer(offset, numbers) for offset, numbers in _adjacent(pointers)),
            *(_map_writer(offset, tensor_map) for offset, tensor_map in maps),
        ]
        self._template = template.tobytes()
        self._new_record = (ctypes.c_char * template.nbytes).from_buffer_copy
        begin(spec, device)
        self._of = spec, device
        self._by_address = CPointer
        self._grid = grid
        self._block = (spec.num_threads,)
        self._smem = spec.smem_bytes

    def load(self) -> None:
        """Wait until the kernel is compiled, and load it.

        Raises
        ------
        CompileError, UnsupportedError
            As `cuattn.compile.jit.load`.
        """
        self._kernel = load(*self._of)

    def __call__(self, addresses: tuple[int, ...]) -> None:
        """Enqueue the kernel on CuPy's current stream, with what `Buffers.addresses` returned."""
        values = self._new_record(self._template)
        for pack_into, offset, pick in self._writers:
            pack_into(values, offset, *pick(addresses))
        # The struct by its address: CuPy takes a microsecond to pass the same as a NumPy array. The
        # driver has copied it when the call returns.
        arguments = (self._by_address(ctypes.addressof(values)),)
        self._kernel(self._grid, self._block, arguments, self._smem)


class Clear:
    """Sets a part of the workspace to zeros.

    Parameters
    ----------
    number : int
        Of the part in a `Buffers`.
    nbytes : int
    """

    def __init__(self, number: int, nbytes: int) -> None:
        self._number = number
        self._nbytes = nbytes

    def __call__(self, addresses: tuple[int, ...]) -> None:
        """Enqueue the work on CuPy's current stream."""
        from cupy.cuda import get_current_stream, runtime

        stream = get_current_stream().ptr
        runtime.memsetAsync(addresses[self._number], 0, self._nbytes, stream)


def loaded(launches: Iterable[AnyLaunch]) -> list[AnyLaunch]:
    """Load the kernels of launches, all of which are being compiled side by side."""
    given = list(launches)
    for launch in given:
        if isinstance(launch, Launch):
            launch.load()
    return given


def enqueue(launches: Sequence[Launch | Clear], buffers: Buffers, given: tuple[int, ...]) -> None:
    """Launch kernels one after the other, with the given addresses and a workspace of their own."""
    # From CuPy's pool; once freed, it goes to later work of the same stream.
    workspace = cupy_module().cuda.alloc(buffers.nbytes) if buffers.nbytes else None
    addresses = buffers.addresses(given, 0 if workspace is None else workspace.ptr)
    for launch in launches:
        launch(addresses)


def _fill(
    template: NDArray[np.void],
    values: Mapping[str, Any],
    base: int,
    pointers: list[tuple[int, int]],
    maps: list[tuple[int, TensorMap]],
) -> None:
    """Write numbers into a struct; collect (offset, number) of pointers, and tensor maps alike."""
    for name, (dtype, offset, *_) in (template.dtype.fields or {}).items():
        value = values[name]
        if dtype == _POINTER:
            pointers.append((base + offset, value))
        elif dtype == TENSOR_MAP:
            if value is not None:
                maps.append((base + offset, value))
        elif dtype.fields is None:
            template[name] = value
        elif value is not None:
            _fill(template[name], value, base + offset, pointers, maps)


def _adjacent(pointers: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Join pointers that follow each other: (offset of the first, numbers of all)."""
    start, numbers = 0, list[int]()
    for offset, number in sorted(pointers):
        if numbers and offset != start + _POINTER.itemsize * len(numbers):
            yield start, numbers
            numbers = []
        if not numbers:
            start = offset
        numbers.append(number)
    if numbers:
        yield start, numbers


def _writer(offset: int, numbers: list[int]) -> tuple[Any, int, Any]:
    pick = (
        itemgetter(*numbers) if len(numbers) > 1 else itemgetter(slice(numbers[0], numbers[0] + 1))
    )
    return Struct(f"={len(numbers)}Q").pack_into, offset, pick


def _map_writer(offset: int, tensor_map: TensorMap) -> tuple[Any, int, Any]:
    encode, number = tensor_map.encode, tensor_map.number

    def pick(addresses: tuple[int, ...]) -> tuple[bytes]:
        return (encode(addresses[number]),)

    return Struct(f"={TENSOR_MAP.itemsize}s").pack_into, offset, pick
