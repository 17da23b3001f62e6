"""Streams that the calls of a rank take in turn, so that one begins where another one ends."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import cycle
from typing import Any

from ..arrays.pytorch import torch_of
from ..arrays.view import cupy_module
from .side_stream import SideStream, as_current

__all__ = ["Lanes"]

_COUNT = 2

# Callers' streams that have some: a program has few.
_REMEMBERED = 64


class Lanes:
    """Streams beside the caller's, which is CuPy's current one; in host memory none.

    A CTA of attention has a multiprocessor to itself, and a call's end when its rows do: with a few
    thousand rows up to a tenth of its time passes while fewer and fewer are left. What is on
    another stream begins on those that are free. Two are enough for that.

    The caller's stream has what all calls come after, and what comes after all of them. While it is
    the same, what is freed behind `join` can be taken again on any of these.

    Parameters
    ----------
    on_gpu : bool
        Whether there is a stream.
    like : array
        Of PyTorch, if its current stream is to be changed, too.
    """

    def __init__(self, on_gpu: bool, like: Any) -> None:
        self._sides: tuple[SideStream, ...] = ()
        self._caller: Any = None
        if on_gpu:
            cuda = cupy_module().cuda
            self._caller = cuda.get_current_stream()
            self._sides = _beside(cuda.runtime.getDevice(), self._caller.ptr)
        self._in_turn = cycle(self._sides)
        self._taken: list[SideStream] = []
        self._torch = torch_of(like)

    def next(self) -> AbstractContextManager[Any]:
        """Make the next one current; it comes after what the caller's has by now."""
        if not self._sides:
            return nullcontext()
        side = next(self._in_turn)
        side.follow()
        self._taken.append(side)
        return as_current(side.stream, self._torch)

    def join(self) -> None:
        """Let the caller's stream come after all that has been enqueued on them."""
        # Others may be no part of a graph that is being captured.
        for side in dict.fromkeys(self._taken):
            self._caller.wait_event(side.event())
        self._taken.clear()


@lru_cache(_REMEMBERED)
def _beside(device: int, caller: int) -> tuple[SideStream, ...]:
    """Return the streams beside one of a device, which is CuPy's current one, by its address."""
    return tuple(SideStream(is_first=False) for _ in range(_COUNT))
