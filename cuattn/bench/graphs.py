"""Calls captured into a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable


class Graph:
    """Calls captured on CuPy's current stream, which is not the default one.

    Parameters
    ----------
    function : callable
        Called once before, which loads its kernels.
    calls : int
        How many of it are captured.
    """

    def __init__(self, function: Callable[[], object], calls: int = 1) -> None:
        import cupy

        self._stream = cupy.cuda.get_current_stream()
        self._pool = cupy.cuda.MemoryPool()  # its own: nobody else is given its memory
        with cupy.cuda.using_allocator(self._pool.malloc):
            function()
            self._stream.begin_capture()
            for _ in range(calls):
                function()
            self._graph = self._stream.end_capture()

    def launch(self) -> None:
        """Enqueue the calls."""
        self._graph.launch(self._stream)
