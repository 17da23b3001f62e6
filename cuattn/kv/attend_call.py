"""A call of `attend` on arrays of the same kinds, whatever cache and kernels it is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..arrays.caller import Caller
from ..arrays.overlap import extent
from ..arrays.view import Array, View, as_cupy, cupy_module, view_cupy
from ..operands.operand import itemsize
from .device import DeviceMemory

__all__ = ["AttendCall", "spans"]


@dataclass(frozen=True, eq=False, kw_only=True)
class AttendCall:
    """What all calls with arrays of the same kinds have in common.

    Attributes
    ----------
    writes_out : bool
        Whether the kernel can write to where the caller wants the output.
    extents : dict of str to tuple of int
        Bytes that the caller's arrays span, from their element 0 on.
    sizes : dict of str to int
        Bytes of their elements.
    arrivals : int
        Counters of 32 bits that have to be 0, and will be again.
    launches : callable
        A `Chain` or what is called like one, of the addresses that `launch` gives. Empty if there
        is no output.
    """

    writes_out: bool
    extents: dict[str, tuple[int, int]]
    sizes: dict[str, int]
    arrivals: int
    launches: Callable[[tuple[int, ...], int], None]

    def launch(
        self,
        memory: DeviceMemory,
        caller: Caller,
        q: View,
        o: View,
        lse: View | None,
        *others: int,
        keeps: bool = False,
    ) -> None:
        """Enqueue the launches on the caller's stream, by way of a copy of `o` if need be.

        Parameters
        ----------
        *others : int
            Addresses behind those of the cache, its counters, `q`, `o` and `lse`.
        keeps : bool
            Whether the kernel leaves some of `o` as it is.
        """
        written = o
        if not self.writes_out:
            written = view_cupy(cupy_module().empty_like(as_cupy(o), order="C"))
            if keeps:
                as_cupy(written)[...] = as_cupy(o)
        given = (
            *memory.attend_addresses,
            memory.counters(self.arrivals),
            q.ptr,
            written.ptr,
            0 if lse is None else lse.ptr,
            *others,
        )
        self.launches(given, caller.stream)
        if written is not o:
            as_cupy(o)[...] = written.owner


def spans(arrays: Mapping[str, Array]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Return `AttendCall.extents` and `AttendCall.sizes` of a caller's arrays."""
    sizes = {name: itemsize(x.dtype) for name, x in arrays.items()}
    return {name: extent(x.shape, x.strides, sizes[name]) for name, x in arrays.items()}, sizes
