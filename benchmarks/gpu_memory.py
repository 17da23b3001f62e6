"""Whether the GPU has room for a case, and its memory given back afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .cases import Case


@contextmanager
def room_for(case: Case, needed: int) -> Iterator[bool]:
    """Say whether the GPU has the memory for a case, and give back afterwards what it took."""
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < needed:
        print(f"{case} left out: {needed >> 30} GiB needed, {free >> 30} free", flush=True)
    yield free >= needed
    give_back()


def give_back() -> None:
    """Hand back what the allocators of CuPy and PyTorch hold without using it."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
