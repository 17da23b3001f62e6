"""The driver's launch, of functions in Python."""

import ctypes
import sys
from types import SimpleNamespace


class SimulatedLaunches:
    """Takes the place of the driver in CuPy; `streams` are those of all launches, in order."""

    def __init__(self, monkeypatch):
        self.streams = []
        self._functions = []
        monkeypatch.setattr("cuattn.compile.chain.cupy_module", lambda: sys.modules["cupy"])
        monkeypatch.setattr("cupy.cuda.driver.launchKernel", self._launch)

    def kernel(self, function):
        """Return a loaded kernel, which is ``function(grid, block, address of the struct, smem)``.

        Of a grid with one axis it gets one number.
        """
        self._functions.append(function)
        return SimpleNamespace(ptr=len(self._functions))

    def _launch(self, function, *sizes_and_more):
        *sizes, smem, stream, arguments, extra = sizes_and_more
        assert extra == 0
        self.streams.append(stream)
        grid = tuple(sizes[:3]) if sizes[1:3] != [1, 1] else (sizes[0],)
        struct = ctypes.c_void_p.from_address(arguments).value
        self._functions[function - 1](grid, tuple(sizes[3:]), struct, smem)
