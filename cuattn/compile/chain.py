"""The launches of a call, one after the other: their arguments in one piece, and the driver's call.

The driver is called by CuPy's binding of ``cuLaunchKernel``, which takes a tenth of a microsecond;
``cupy.cuda.Function`` takes microseconds to look at its arguments, and ctypes half of one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

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
        self._buffers = buffers
        self._layout = _Layout(self.launches, buffers)
        self._nbytes, self._cleared = buffers.nbytes, buffers.cleared
        self._unused: list[_Arguments] = []

    def __len__(self) -> int:
        """Return how many launches there are."""
        return len(self.launches)

    def of(self, names: Sequence[str | None], constants: Mapping[str, int]) -> Chain:
        """Return the same launches of some of the addresses, in another order; others are null.

        Parameters
        ----------
        names : sequence of str or None
            What the addresses are that it is called with; of None they are ignored.
        constants : mapping of str to int
            Addresses that are the same in all calls.
        """
        chain = copy(self)
        number = self._buffers.__getitem__
        numbers = [NULL if name is None else number(name) for name in names]
        fixed = {number(name): address for name, address in constants.items()}
        chain._layout = self._layout.of(numbers, fixed)
        chain._unused = []
        return chain

    def __call__(self, given: Sequence[int], stream: int) -> None:
        """Enqueue all launches on a stream, which is CuPy's current one.

        Parameters
        ----------
        given : sequence of int
            The addresses that the buffers have names for; always of the same type.
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
        try:
            for launch, place in arguments.launches:
                launch(stream, place, 0)
        except cuda.driver.CUDADriverError as error:
            if error.status not in CONTEXT_MISSING:
                raise
            # The first that this thread asks of the GPU, so nothing has been launched.
            make_context()
            for launch, place in arguments.launches:
                launch(stream, place, 0)
        # The driver has copied them.
        self._unused.append(arguments)


class _Place(NamedTuple):
    """Where an address belongs.

    Attributes
    ----------
    words : list of int
        In the memory of the structs as words of 8 bytes.
    maps : list of (function, slice)
        Which tensor maps are made of it, and where they belong.
    """

    words: list[int]
    maps: list[tuple[Encode, slice]]

    def write(self, address: int, memory: bytearray, words: memoryview[int]) -> None:
        """Write it, to memory that is also there as words."""
        for word in self.words:
            words[word] = address
        for encode, place in self.maps:
            memory[place] = encode(address)


class _Layout:
    """How the structs of several launches lie in one piece of memory.

    Attributes
    ----------
    template : bytes
        Of all of them, without addresses.
    offsets : list of int
        Of the structs.
    given : list of _Place
        Of the addresses that a call gives.
    parts : list of (int, _Place)
        Of those in the workspace, and where they are in it.
    """

    def __init__(self, launches: Sequence[Launch], buffers: Buffers) -> None:
        self.template = b""
        self.offsets: list[int] = []
        places = [_Place([], []) for _ in range(buffers.count)]
        for launch in launches:
            self.template += bytes(-len(self.template) % _ALIGNMENT)
            begin = len(self.template)
            self.offsets.append(begin)
            self.template += launch.template
            for offset, number in launch.pointers:
                places[number].words.append((begin + offset) // _WORD)
            for offset, tensor_map in launch.maps:
                place = slice(begin + offset, begin + offset + TENSOR_MAP.itemsize)
                # Mostly the same few addresses come again; a key of one number is found at once.
                encode = lru_cache(_REMEMBERED)(tensor_map.encode)
                places[tensor_map.number].maps.append((encode, place))
        self.template += bytes(-len(self.template) % _WORD)
        self.parts = [(offset, places[number]) for number, offset in buffers.parts]
        self._places = places
        self.given = places[1 : len(places) - len(self.parts)]

    def of(self, numbers: Sequence[int], fixed: Mapping[int, int]) -> _Layout:
        """Return the same of other given addresses, by their numbers, and of some in the template.

        Of `NULL` they belong nowhere.
        """
        layout = copy(self)
        nowhere = _Place([], [])
        layout.given = [self._places[n] if n != NULL else nowhere for n in numbers]
        memory = bytearray(self.template)
        for number, address in fixed.items():
            self._places[number].write(address, memory, memoryview(memory).cast("Q"))
        layout.template = bytes(memory)
        return layout


class _Arguments:
    """Memory of the arguments of all launches, of one call at a time.

    Attributes
    ----------
    launches : list of (function, int)
        Each is a function of a stream, what is told here, and 0.
    """

    def __init__(self, layout: _Layout, commands: Sequence[tuple[int, ...]]) -> None:
        self._bytes = bytearray(layout.template)
        self._words = memoryview(self._bytes).cast("Q")
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes)) if self._bytes else 0
        # A kernel's arguments are given as an array of their addresses: here of one.
        structs = [begin + offset for offset in layout.offsets]
        self._structs = (ctypes.c_void_p * len(structs))(*structs)
        first = ctypes.addressof(self._structs)
        places = range(first, first + ctypes.sizeof(self._structs), _WORD)
        launch = cupy_module().cuda.driver.launchKernel
        functions = [partial(launch, *command) for command in commands]
        self.launches = list(zip(functions, places, strict=True))
        self._places, self._parts = layout.given, layout.parts
        self._given: Sequence[int] = [NULL] * len(self._places)
        self._workspace = NULL

    def write(self, given: Sequence[int], workspace: int) -> None:
        """Write the addresses of a call, as far as they are others than those of before."""
        if given != self._given:
            for place, address, before in zip(self._places, given, self._given, strict=True):
                if address != before:
                    place.write(address, self._bytes, self._words)
            self._given = given
        if workspace != self._workspace:
            for offset, place in self._parts:
                place.write(workspace + offset, self._bytes, self._words)
            self._workspace = workspace
