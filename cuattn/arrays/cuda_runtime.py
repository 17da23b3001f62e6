"""CuPy as it is found here: how it is imported, how to get it, and why its CUDA finds no GPU."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError

__all__ = [
    "CUPY_PACKAGES",
    "check_after_fork",
    "check_version",
    "forget_after_fork",
    "import_cupy",
    "install_advice",
    "pip_install",
    "why_no_gpu",
]

# By CUDA major: CuPy, the compiler, and the headers that CuPy's own kernels include. Package names,
# not an extra of cuattn, which only an index that has cuattn could resolve.
CUPY_PACKAGES = {
    12: ("cupy-cuda12x>=14.2", "nvidia-cuda-nvrtc-cu12>=12.4", "nvidia-cuda-runtime-cu12>=12.4"),
    13: ("cupy-cuda13x>=14.2", "nvidia-cuda-nvrtc>=13,<14", "nvidia-cuda-runtime>=13,<14"),
}

# Older ones take no streams of others by ``__cuda_stream__``, and do not look for the compiler in
# its package.
_OLDEST_CUPY = 14

# Of cudaError_t, driver_types.h.
_INITIALIZATION_ERROR = 3
_INSUFFICIENT_DRIVER = 35
_NO_DEVICE = 100

# Processes forked from this one inherit it, and add their own mark.
_forks: list[None] = []

# Keeps the folder that stands in for ~/.cupy as long as the process.
_cupy_folder: list[tempfile.TemporaryDirectory[str]] = []


def install_advice() -> str:
    """Return how to install CuPy and the compiler here, as commands that work."""
    if sys.platform == "darwin":
        return "CUDA does not exist for macOS, where cuattn computes arrays of NumPy only"
    commands = [pip_install(*packages) for packages in CUPY_PACKAGES.values()]
    return f"{commands[0]}; if the driver is for CUDA 13: {commands[1]}"


def pip_install(*requirements: str) -> str:
    """Return the command that installs packages, for the shells of every system."""
    return " ".join(["pip install", *(f'"{requirement}"' for requirement in requirements)])


def import_cupy() -> Any:
    """Import CuPy, with a folder of its own where the home directory cannot be written.

    CuPy 14 makes ``~/.cupy`` when it is imported; where that fails it cannot be imported again, so
    the folder is looked after before.

    Raises
    ------
    ImportError
        If it is not installed or damaged.
    OSError
        If ``$CUPY_CACHE_DIR`` is a folder that cannot be made.
    """
    if "cupy" not in sys.modules and "CUPY_CACHE_DIR" not in os.environ:
        folder = os.path.expanduser("~/.cupy/kernel_cache")
        if not _can_be_made(folder):
            # Others cannot plant files in it, unlike in one with a name that they can guess.
            made = tempfile.TemporaryDirectory(prefix="cupy-", ignore_cleanup_errors=True)
            _cupy_folder.append(made)
            os.environ["CUPY_CACHE_DIR"] = made.name
    import cupy

    return cupy


def check_version(cupy: Any) -> None:
    """Refuse a CuPy that is too old, before anything is launched.

    Raises
    ------
    UnsupportedError
        If it is older than 14.
    """
    version = str(cupy.__version__)
    if int(version.partition(".")[0]) < _OLDEST_CUPY:
        raise UnsupportedError(
            f"CuPy {version} is too old for cuattn, which needs {_OLDEST_CUPY} or newer: "
            f"{install_advice()}"
        )


def why_no_gpu(error: Any) -> str:
    """Say in words what an error of CUDA's run-time means for whoever wants a GPU.

    Parameters
    ----------
    error : cupy.cuda.runtime.CUDARuntimeError
    """
    status = getattr(error, "status", None)
    if status == _INSUFFICIENT_DRIVER:
        runtime = import_cupy().cuda.runtime
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion() // 1000
        if not driver:
            return "there is no NVIDIA driver"
        have = f"{driver // 1000}.{driver % 1000 // 10}"
        return f"the NVIDIA driver is for CUDA {have}, and CuPy here for CUDA {needed}"
    if status == _NO_DEVICE:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = "" if chosen is None else f"; CUDA_VISIBLE_DEVICES is {chosen!r}"
        return f"the NVIDIA driver finds no GPU{hint}"
    if status == _INITIALIZATION_ERROR and _forks:
        return (
            "CUDA cannot be used in a process forked from one that has used it: start processes "
            'with spawn, as multiprocessing.get_context("spawn") does'
        )
    return str(error)


def check_after_fork(runtime: Any) -> None:
    """In a forked process, use CUDA, which counts GPUs there as if it could be used.

    Raises
    ------
    cupy.cuda.runtime.CUDARuntimeError
        If the process that this one was forked from has used CUDA.
    """
    if _forks:
        runtime.free(0)


def forget_after_fork(forget: Callable[[], Any]) -> None:
    """Have a function called in every process that is forked from this one."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=forget)


def _can_be_made(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        # A mode that allows writing says nothing of a file system that is mounted read-only.
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


forget_after_fork(lambda: _forks.append(None))
