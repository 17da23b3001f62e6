"""Whether the GPU has room for a case, and its memory given back afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .cases import Case
from .left_out import LeftOut

GIB = 2**30


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
