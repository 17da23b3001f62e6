"""The launches of a call, one after the other: their arguments in one piece, and the driver's call.

The driver is called by CuPy's binding of ``cuLaunchKernel``, which takes a tenth of a microsecond;
``cupy.cuda.Function`` takes microseconds to look at its arguments, and ctypes half of one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from struct import Struct, calcsize
from typing import Any

from ..arrays.view import cupy_module
from .launch import Buffers, Launch
from .params import TENSOR_MAP
from .tensor_map import CONTEXT_MISSING, make_context

__all__ = ["Chain"]

# Of the structs: no member asks for more.
_ALIGNMENT = 64
_POINTER_BYTES = 8
_MAP = f"{TENSOR_MAP.itemsize}s"

# Addresses of each tensor map of a chain.
_REMEMBERED = 8


class Chain:
    """Launches of loaded kernels, in order, with a workspace of their own.

    Threads may share it: each call has the memory of its arguments to itself. It keeps that for
    later calls, which write addresses again only if they are others.

    Parameters
    ----------
    launches : iterable of Launch
        All of which are being compiled side by side.
    buffers : Buffers
        Of their addresses.

    Raises
    ------
    CompileError, UnsupportedError
        As `cuattn.compile.jit.load`.
    """

    def __init__(self, launches: Iterable[Launch], buffers: Buffers) -> None:
        self.launches = tuple(launches)
        self._commands = [launch.load() for launch in self.launches]
        self._layout = _Layout(self.launches, buffers.count)
        self._buffers = buffers
        self._unused: list[_Arguments] = []

    def __len__(self) -> int:
        """Return how many launches there are."""
        return len(self.launches)

    def __call__(self, given: tuple[int, ...], stream: int) -> None:
        """Enqueue all launches on a stream, which is CuPy's current one.

        Parameters
        ----------
        given : tuple of int
            The addresses that the buffers have names for.
        stream : int
            The address of the stream.
        """
        cuda = cupy_module().cuda
        # From CuPy's pool; once freed, it goes to later work of the same stream.
        workspace = cuda.alloc(self._buffers.nbytes) if self._buffers.nbytes else None
        begin = 0 if workspace is None else workspace.ptr
        try:
            arguments = self._unused.pop()
        except IndexError:  # as many threads as never before
            arguments = _Arguments(self._layout, self._commands)
        if arguments.written != (given, begin):
            arguments.write(given, begin, self._buffers)
        for offset, nbytes in self._buffers.cleared:
            cuda.runtime.memsetAsync(begin + offset, 0, nbytes, stream)
        try:
            for command, place in arguments.launches:
                cuda.driver.launchKernel(*command, stream, place, 0)
        except cuda.driver.CUDADriverError as error:
            if error.status not in CONTEXT_MISSING:
                raise
            # The first that this thread asks of the GPU, so nothing has been launched.
            make_context()
            for command, place in arguments.launches:
                cuda.driver.launchKernel(*command, stream, place, 0)
        # The driver has copied them.
        self._unused.append(arguments)


class _Layout:
    """How the structs of several launches lie in one piece of memory, which is written at once.

    Attributes
    ----------
    nbytes : int
    offsets : list of int
        Of the structs.
    """

    def __init__(self, launches: Sequence[Launch], num_addresses: int) -> None:
        # Mostly the same few addresses come again, and a key of one number is found at once.
        self._maps = [
            (lru_cache(_REMEMBERED)(tensor_map.encode), tensor_map.number)
            for launch in launches
            for _, tensor_map in launch.maps
        ]
        self.offsets: list[int] = []
        self.nbytes = 0
        self._constants: list[bytes] = []
        # What is written, in order: the format of each item, and which of all values it is. The
        # values are the addresses by their numbers, the maps, and the constants.
        self._formats: list[str] = []
        self._items: list[int] = []
        self._first_constant = num_addresses + len(self._maps)
        first_map = num_addresses
        for launch in launches:
            self._add_constant(bytes(-self.nbytes % _ALIGNMENT))
            self.offsets.append(self.nbytes)
            pointers = [(offset, "Q", number) for offset, number in launch.pointers]
            maps = [(offset, _MAP, first_map + i) for i, (offset, _) in enumerate(launch.maps)]
            first_map += len(maps)
            self._add_struct(launch.template, sorted([*pointers, *maps]))
        self._add_constant(b"")  # itemgetter makes no tuple of a single item
        self._add_constant(b"")
        self._pack_into = Struct("".join(["=", *self._formats])).pack_into
        self._pick = itemgetter(*self._items)

    def write(self, memory: Any, addresses: tuple[int, ...]) -> None:
        """Write all structs, given the addresses by their numbers."""
        maps = [encode(addresses[number]) for encode, number in self._maps]
        self._pack_into(memory, 0, *self._pick((*addresses, *maps, *self._constants)))

    def _add_struct(self, template: bytes, variable: list[tuple[int, str, int]]) -> None:
        """Add a struct with its pointers and maps: (offset, format, which of all values)."""
        done = 0
        for offset, form, item in variable:
            self._add_constant(template[done:offset])
            self._add(form, item)
            done = offset + calcsize(form)
        self._add_constant(template[done:])

    def _add_constant(self, constant: bytes) -> None:
        self._add(f"{len(constant)}s", self._first_constant + len(self._constants))
        self._constants.append(constant)

    def _add(self, form: str, item: int) -> None:
        self._formats.append(form)
        self._items.append(item)
        self.nbytes += calcsize(form)


class _Arguments:
    """Memory of the arguments of all launches, of one call at a time.

    Attributes
    ----------
    launches : list of (tuple of int, int)
        What the driver is told of each before the stream and after it.
    written : (tuple of int, int), optional
        The given addresses and that of the workspace that are in the memory.
    """

    def __init__(self, layout: _Layout, commands: Sequence[tuple[int, ...]]) -> None:
        self._layout = layout
        self._memory = ctypes.create_string_buffer(layout.nbytes)
        structs = [ctypes.addressof(self._memory) + offset for offset in layout.offsets]
        # A kernel's arguments are given as an array of their addresses: here of one.
        self._pointers = (ctypes.c_void_p * len(structs))(*structs)
        begin = ctypes.addressof(self._pointers)
        places = range(begin, begin + ctypes.sizeof(self._pointers), _POINTER_BYTES)
        self.launches = list(zip(commands, places, strict=True))
        self.written: tuple[tuple[int, ...], int] | None = None

    def write(self, given: tuple[int, ...], workspace: int, buffers: Buffers) -> None:
        """Write the addresses of a call."""
        self._layout.write(self._memory, buffers.addresses(given, workspace))
        self.written = given, workspace
