"""What is said of schemes, baselines and shapes that are not measured; room for those that are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from .cases import Case

__all__ = ["GIB", "LeftOut", "give_back", "in_a_line", "room_for"]

# Told what is left out, such as a scheme or a baseline on one shape, and why.
LeftOut: TypeAlias = Callable[[str, str], None]

GIB = 2**30


def in_a_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next((x.strip() for x in str(error).splitlines() if x.strip()), type(error).__name__)


@contextmanager
def room_for(case: Case, needed: int, left_out: LeftOut) -> Iterator[bool]:
    """Say whether the GPU has the memory for a case, and give back afterwards what it took.

    Parameters
    ----------
    case : Case
    needed : int
        Bytes.
    left_out : callable
        Told about the case if there is no room for it.
    """
    import cupy

    give_back()  # what a case took that failed
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < needed:
        left_out(str(case), f"{needed / GIB:.1f} GiB needed, {free / GIB:.1f} free")
    try:
        yield free >= needed
    finally:
        give_back()


def give_back() -> None:
    """Hand back what the allocators of CuPy and PyTorch hold without using it."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
