"""NVRTC, through CuPy's binding: CUDA C++ in, a cubin out. Needs neither a GPU nor a driver."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

from ..arrays.device import INSTALL, target
from ..errors import CompileError, UnsupportedError
from .ptxas import KernelInfo, kernel_infos
from .sources import sources

__all__ = ["Cubin", "checked_arch", "compile_source", "fingerprint", "nvrtc_version"]

# No fast-math and no flushing of denormals: kernels ask for either where they want it. Without
# -default-device NVRTC takes a generic lambda, which cannot be annotated, for host code.
_OPTIONS = ("-std=c++20", "-default-device", "--ptxas-options=-v")


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
    if int(wanted.arch.rstrip("a")) not in _nvrtc().getSupportedArchs():
        have, need = ("{}.{}".format(*v) for v in (nvrtc_version(), wanted.min_toolkit))
        raise UnsupportedError(
            f"NVRTC {have} cannot compile for sm_{wanted.arch}, which needs CUDA toolkit {need} or "
            f"newer: pip install 'cuda-toolkit[nvrtc]>={need}', of the driver's CUDA major"
        )
    return wanted.arch


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


@cache
def _nvrtc() -> Any:
    """CuPy's binding of NVRTC, known to find its library."""
    try:
        from cupy.cuda import nvrtc

        with _FINDING:
            nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise CompileError(f"no CUDA compiler (NVRTC): {error}; {INSTALL}") from None
    return nvrtc


@cache
def _headers() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Names and contents of all own sources, as NVRTC wants them."""
    names = tuple(name.encode() for name in sources())
    return names, tuple(text.encode() + b"\0" for text in sources().values())
