"""Workspace of calls from PyTorch's allocator, so that there is one pool and graphs own theirs.

A CUDA graph keeps addresses. What PyTorch's allocator gives while it captures belongs to the graph,
in `torch.cuda.graph` and in the trees of graphs of `torch.compile(mode="reduce-overhead")`; CuPy's
own pool knows nothing of either. Blocks go back when a call has enqueued its work, to later work of
the same stream, as with CuPy's pool.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

__all__ = ["pytorch_memory"]


def pytorch_memory(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which CuPy's memory is of PyTorch's pool and current stream of a GPU."""
    manager: AbstractContextManager[object] = _cuda().using_allocator(_allocator(device))
    return manager


@cache
def _cuda() -> Any:
    import cupy

    return cupy.cuda


@cache
def _allocator(device: torch.device) -> Callable[[int], Any]:
    cuda = _cuda()

    def allocate(nbytes: int) -> Any:
        block = torch.empty(nbytes, dtype=torch.uint8, device=device)
        # It keeps the tensor for as long as it lives itself.
        memory = cuda.UnownedMemory(block.data_ptr(), nbytes, block, device.index)
        return cuda.MemoryPointer(memory, 0)

    return allocate
