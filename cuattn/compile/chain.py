"""The launches of a call, one after the other: their arguments in one piece, and the driver's call.

The driver is called by CuPy's binding of ``cuLaunchKernel``, which takes a tenth of a microsecond;
``cupy.cuda.Function`` takes microseconds to look at its arguments, and ctypes half of one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

from ..arrays.view import cupy_module
from .launch import NULL, Buffers, Launch
from .params import TENSOR_MAP
from .tensor_map import CONTEXT_MISSING, make_context

__all__ = ["Chain"]

# Of the structs: no member asks for more.
_ALIGNMENT = 64
_WORD = 8

# Addresses of each tensor map of a chain.
_REMEMBERED = 8

# Makes a tensor map of the address of its array.
Encode: TypeAlias = Callable[[int], bytes]


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
        self._layout = _Layout(self.launches, buffers)
        self._nbytes, self._cleared = buffers.nbytes, buffers.cleared
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
        workspace = cuda.alloc(self._nbytes) if self._nbytes else None
        begin = NULL if workspace is None else workspace.ptr
        try:
            arguments = self._unused.pop()
        except IndexError:  # as many threads as never before
            arguments = _Arguments(self._layout, self._commands)
        arguments.write(given, begin)
        for offset, nbytes in self._cleared:
            cuda.runtime.memsetAsync(begin + offset, 0, nbytes, stream)
        launch = cuda.driver.launchKernel
        try:
            for command, place in arguments.launches:
                launch(*command, stream, place, 0)
        except cuda.driver.CUDADriverError as error:
            if error.status not in CONTEXT_MISSING:
                raise
            # The first that this thread asks of the GPU, so nothing has been launched.
            make_context()
            for command, place in arguments.launches:
                launch(*command, stream, place, 0)
        # The driver has copied them.
        self._unused.append(arguments)


class _Layout:
    """How the structs of several launches lie in one piece of memory.

    Attributes
    ----------
    template : bytes
        Of all of them, without addresses.
    offsets : list of int
        Of the structs.
    parts : list of tuple of int
        As of `Buffers`.
    words : list of list of int
        Where each address belongs, by its number: in the memory as words of 8 bytes.
    maps : list of list of (function, slice)
        Which tensor maps are made of it, and where they belong.
    """

    def __init__(self, launches: Sequence[Launch], buffers: Buffers) -> None:
        self.template = b""
        self.offsets: list[int] = []
        self.parts = buffers.parts
        numbers = range(buffers.count)
        self.words: list[list[int]] = [[] for _ in numbers]
        self.maps: list[list[tuple[Encode, slice]]] = [[] for _ in numbers]
        for launch in launches:
            self.template += bytes(-len(self.template) % _ALIGNMENT)
            begin = len(self.template)
            self.offsets.append(begin)
            self.template += launch.template
            for offset, number in launch.pointers:
                self.words[number].append((begin + offset) // _WORD)
            for offset, tensor_map in launch.maps:
                place = slice(begin + offset, begin + offset + TENSOR_MAP.itemsize)
                # Mostly the same few addresses come again; a key of one number is found at once.
                encode = lru_cache(_REMEMBERED)(tensor_map.encode)
                self.maps[tensor_map.number].append((encode, place))
        self.template += bytes(-len(self.template) % _WORD)


class _Arguments:
    """Memory of the arguments of all launches, of one call at a time.

    Attributes
    ----------
    launches : list of (tuple of int, int)
        What the driver is told of each before the stream and after it.
    """

    def __init__(self, layout: _Layout, commands: Sequence[tuple[int, ...]]) -> None:
        self._layout = layout
        self._bytes = bytearray(layout.template)
        self._words = memoryview(self._bytes).cast("Q")
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes)) if self._bytes else 0
        # A kernel's arguments are given as an array of their addresses: here of one.
        structs = [begin + offset for offset in layout.offsets]
        self._structs = (ctypes.c_void_p * len(structs))(*structs)
        first = ctypes.addressof(self._structs)
        places = range(first, first + ctypes.sizeof(self._structs), _WORD)
        self.launches = list(zip(commands, places, strict=True))
        self._given: tuple[int, ...] = ()
        self._workspace = NULL

    def write(self, given: tuple[int, ...], workspace: int) -> None:
        """Write the addresses of a call, as far as they are others than those of before."""
        if given != self._given:
            before = self._given or (NULL,) * len(given)
            number = 1
            for address, old in zip(given, before, strict=True):
                if address != old:
                    self._write(number, address)
                number += 1
            self._given = given
        if workspace != self._workspace:
            for number, offset in self._layout.parts:
                self._write(number, workspace + offset)
            self._workspace = workspace

    def _write(self, number: int, address: int) -> None:
        for word in self._layout.words[number]:
            self._words[word] = address
        for encode, place in self._layout.maps[number]:
            self._bytes[place] = encode(address)
