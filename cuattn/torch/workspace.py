"""Workspace of calls from PyTorch's allocator, so that there is one pool and graphs own theirs.

A CUDA graph keeps addresses. What PyTorch's allocator gives while it captures belongs to the graph,
in `torch.cuda.graph` and in the trees of graphs of `torch.compile(mode="reduce-overhead")`; CuPy's
own pool knows nothing of either. Blocks go back when a call has enqueued its work, to later work of
the same stream, as with CuPy's pool.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

__all__ = ["pytorch_memory"]


def pytorch_memory() -> AbstractContextManager[object]:
    """Return a context in which memory of CuPy's is of PyTorch's current stream and pool."""
    manager: AbstractContextManager[object] = _cuda().using_allocator(_allocate)
    return manager


@cache
def _cuda() -> Any:
    import cupy

    return cupy.cuda


def _allocate(nbytes: int) -> Any:
    cuda = _cuda()
    block = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    # It keeps the tensor for as long as it lives itself.
    memory = cuda.UnownedMemory(block.data_ptr(), nbytes, block, block.get_device())
    return cuda.MemoryPointer(memory, 0)
