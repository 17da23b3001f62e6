"""A kernel with its grid and all of its arguments but the addresses, which `Buffers` numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays.device import Device
from ..common.sizes import round_up
from .jit import Spec, begin, load
from .params import TENSOR_MAP, record
from .tensor_map import TensorMap

__all__ = ["NULL", "Buffers", "Launch"]

# How `record` spells a pointer; integers of its own kind do not occur.
_POINTER = np.dtype("<u8")

# Of parts of the workspace: what vector loads need, and whole lines of the L2 cache.
_ALIGNMENT = 256

# The number of the null pointer.
NULL = 0


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
        Names of the addresses that a call has from outside, in this order.

    Attributes
    ----------
    nbytes : int
        Of the workspace.
    cleared : list of tuple of int
        Offset in the workspace and length of what is to be zeros before the first launch.
    """

    def __init__(self, *given: str) -> None:
        self._numbers = {name: number for number, name in enumerate(given, 1)}
        self._given = len(given)
        self._offsets: list[int] = []
        self.nbytes = 0
        self.cleared: list[tuple[int, int]] = []

    def __getitem__(self, name: str) -> int:
        """Return the number of a given address, or of one that has been named."""
        return self._numbers[name]

    def name(self, **numbers: int) -> None:
        """Give addresses that have numbers names as well."""
        self._numbers |= numbers

    @property
    def count(self) -> int:
        """How many addresses there are."""
        return 1 + self._given + len(self._offsets)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Number and offset of each part of the workspace."""
        return [*enumerate(self._offsets, 1 + self._given)]

    def take(self, nbytes: int) -> int:
        """Reserve a part of the workspace and return its number."""
        self._offsets.append(self.nbytes)
        self.nbytes += round_up(nbytes, _ALIGNMENT)
        return self._given + len(self._offsets)

    def clear(self, number: int, nbytes: int) -> None:
        """Have a part of the workspace set to zeros before the first launch."""
        self.cleared.append((self._offsets[number - self._given - 1], nbytes))


class Launch:
    """A kernel, bound to its grid and arguments; a `Chain` launches it.

    Attributes
    ----------
    template : bytes
        The struct that the kernel takes, with zeros for pointers and tensor maps.
    pointers : list of tuple of int
        Where in it pointers are, and their numbers in a `Buffers`.
    maps : list of (int, TensorMap)
        Where in it tensor maps are.
    """

    def __init__(
        self, spec: LaunchSpec, device: Device, grid: tuple[int, ...], values: Mapping[str, Any]
    ) -> None:
        """Bind a kernel, and begin to compile it if that has not been done.

        Parameters
        ----------
        spec : spec of a kernel
        device : Device
        grid : tuple of int
            CTAs along each axis, at least 1.
        values : mapping of str to object
            By names of the members of the kernel's parameter struct: numbers, for pointers their
            numbers in a `Buffers`, for tensor maps a `TensorMap`, or None for zeros, for nested
            structs mappings again, or None for zeros, for arrays of structs a sequence of these,
            of which those that are missing are zeros.
        """
        template = np.zeros((), record(spec.params, spec.params_file))
        self.pointers: list[tuple[int, int]] = []
        self.maps: list[tuple[int, TensorMap]] = []
        self._fill(template, values, 0)
        self.template = template.tobytes()
        begin(spec, device)
        self._of = spec, device
        self._grid = (*grid, 1, 1)[:3]
        self._block = (spec.num_threads, 1, 1)
        self._smem = spec.smem_bytes

    def load(self) -> tuple[int, ...]:
        """Wait until the kernel is compiled, load it, and return what the driver is told first.

        That is the function, its grid, its block and its shared memory.

        Raises
        ------
        CompileError, UnsupportedError
            As `cuattn.compile.jit.load`.
        """
        self._kernel = load(*self._of)  # which unloads with the last reference
        return (self._kernel.ptr, *self._grid, *self._block, self._smem)

    def _fill(self, struct: NDArray[np.void], values: Mapping[str, Any], base: int) -> None:
        """Write numbers into a struct, and note its pointers and tensor maps."""
        for name, (dtype, offset, *_) in (struct.dtype.fields or {}).items():
            value = values[name]
            if dtype == _POINTER:
                self.pointers.append((base + offset, value))
            elif dtype == TENSOR_MAP:
                if value is not None:
                    self.maps.append((base + offset, value))
            elif dtype.subdtype is not None:
                element = dtype.subdtype[0].itemsize
                for i, each in enumerate(value):
                    self._fill(struct[name][i, ...], each, base + offset + i * element)
            elif dtype.fields is None:
                struct[name] = value
            elif value is not None:
                self._fill(struct[name], value, base + offset)
