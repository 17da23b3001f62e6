"""NVRTC, through CuPy's binding: CUDA C++ in, a cubin out, and what its log says of the kernels.

Needs neither a GPU nor a driver, and no headers of CUDA: kernels include their own only. Every
version from `cuattn.arrays.device.OLDEST_TOOLKIT` on will do for the targets that it knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

from ..arrays.cuda_runtime import CUPY_PACKAGES, import_cupy, install_advice, pip_install
from ..arrays.device import Target, all_targets, target
from ..errors import CompileError, UnsupportedError
from .sources import sources

__all__ = [
    "Cubin",
    "KernelInfo",
    "can_compile_for",
    "checked_arch",
    "compile_source",
    "fingerprint",
    "kernel_infos",
    "nvrtc_version",
]

# No fast-math and no flushing of denormals: kernels ask for either where they want it. Without
# -default-device NVRTC takes a generic lambda, which cannot be annotated, for host code.
_OPTIONS = ("-std=c++20", "-default-device", "--ptxas-options=-v")


# What ptxas, run with -v, says of a kernel.
_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SMEM = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class KernelInfo:
    """Resources of one kernel: registers per thread, and bytes of the rest.

    `smem` is static shared memory only; `stack` counts local arrays as well as spills.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    smem: int


@dataclass(frozen=True)
class Cubin:
    """A compiled unit: the ELF image, the compiler's log, and the resources of each kernel."""

    image: bytes
    log: str
    info: dict[str, KernelInfo]


# Two threads that load NVRTC at the same time fail to find its second library.
_FINDING = Lock()


def compile_source(text: str, arch: str, name: str = "unit.cu") -> Cubin:
    """Compile a translation unit that may include anything under kernels_cu/, and nothing else.

    Parameters
    ----------
    text : str
        CUDA C++. Own headers are included by their name relative to kernels_cu/.
    arch : str
        Compilation target, for example "80" or "90a".
    name : str, optional
        What the compiler's messages call the unit.

    Raises
    ------
    ArgumentError
        If the target is unknown.
    UnsupportedError
        If NVRTC is too old for the target.
    CompileError
        If there is no compiler, or it rejects the unit; then with its log.
    """
    arch = checked_arch(arch)
    nvrtc = _nvrtc()
    names, contents = _headers()
    program = nvrtc.createProgram(text, name, contents, names)
    try:
        try:
            nvrtc.compileProgram(program, (f"-arch=sm_{arch}", *_OPTIONS))
        except nvrtc.NVRTCError:
            log = nvrtc.getProgramLog(program).rstrip("\0")
            raise CompileError(f"{name} does not compile for sm_{arch}", log) from None
        log = nvrtc.getProgramLog(program).rstrip("\0")
        # CuPy cuts the last byte, which is always 0: right for PTX, but an ELF file needs it.
        image = nvrtc.getCUBIN(program) + b"\0"
    finally:
        nvrtc.destroyProgram(program)
    return Cubin(image, log, kernel_infos(log))


def checked_arch(arch: str) -> str:
    """Return the canonical name of a target that this compiler can compile for.

    Raises
    ------
    ArgumentError, CompileError, UnsupportedError
        As `compile_source`.
    """
    wanted = target(arch)
    if not can_compile_for(wanted):
        have, need = ("{}.{}".format(*v) for v in (nvrtc_version(), wanted.min_toolkit))
        able = [f"sm_{known.arch}" for known in all_targets() if can_compile_for(known)]
        raise UnsupportedError(
            f"NVRTC {have} cannot compile for sm_{wanted.arch}, which needs CUDA {need} or newer; "
            f"it has {', '.join(able) or 'none of the targets'}: {_newer_compiler(wanted)}"
        )
    return wanted.arch


def can_compile_for(wanted: Target) -> bool:
    """Whether this compiler knows a target.

    Raises
    ------
    CompileError
        If there is no compiler.
    """
    known = _nvrtc().getSupportedArchs()
    return nvrtc_version() >= wanted.min_toolkit and int(wanted.arch.rstrip("a")) in known


def nvrtc_version() -> tuple[int, int]:
    """Return the version of the compiler as (major, minor).

    Raises
    ------
    CompileError
        If there is none.
    """
    major, minor = _nvrtc().getVersion()
    return major, minor


def fingerprint() -> tuple[str, ...]:
    """Return what, besides sources and target, determines a binary: compiler and options."""
    return "NVRTC {}.{}".format(*nvrtc_version()), *_OPTIONS


def kernel_infos(log: str) -> dict[str, KernelInfo]:
    """Read the resources of every entry function from a compiler log."""
    # One section per entry; what comes before the first belongs to none.
    _, *sections = _ENTRY.split(log)
    return {name: _info(text) for name, text in zip(sections[::2], sections[1::2], strict=True)}


def _info(text: str) -> KernelInfo:
    frame = _FRAME.search(text)
    stack, stores, loads = map(int, frame.groups()) if frame else (0, 0, 0)
    return KernelInfo(_number(_USED, text), stack, stores, loads, _number(_SMEM, text))


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else 0


@cache
def _nvrtc() -> Any:
    """CuPy's binding of NVRTC, known to find its library."""
    try:
        cupy = import_cupy()
    except (ImportError, OSError) as error:
        raise CompileError(
            f"no CuPy, and so no CUDA compiler: {error}; {install_advice()}"
        ) from None
    from cupy.cuda import nvrtc

    major = _cuda_major(cupy)
    try:
        with _FINDING:
            nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        packages = CUPY_PACKAGES.get(major, ())[1:]  # without CuPy
        advice = pip_install(*packages) if packages else f"CuPy is for CUDA {major}"
        reason = " ".join(str(error).split())
        raise CompileError(f"no CUDA compiler (NVRTC): {reason}; {advice}") from None
    return nvrtc


def _cuda_major(cupy: Any) -> int:
    return int(cupy.cuda.runtime.runtimeGetVersion()) // 1000


def _newer_compiler(wanted: Target) -> str:
    """Return what to install for a target that this compiler does not know."""
    major, minor = wanted.min_toolkit
    if major != _cuda_major(import_cupy()):
        packages = pip_install(*CUPY_PACKAGES[major])
        return f"with a driver for CUDA {major}, and in place of this CuPy, {packages}"
    package = CUPY_PACKAGES[major][1].partition(">=")[0]
    return pip_install(f"{package}>={major}.{minor}")


@cache
def _headers() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Names and contents of all own sources, as NVRTC wants them."""
    names = tuple(name.encode() for name in sources())
    return names, tuple(text.encode() + b"\0" for text in sources().values())
