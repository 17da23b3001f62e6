"""Facts of a GPU that planning needs: of the one at hand, and of each target without one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..common.public import naming_keywords
from ..errors import ArgumentError, NoGPUError, UnsupportedError
from .cuda_runtime import (
    check_after_fork,
    check_version,
    forget_after_fork,
    import_cupy,
    install_advice,
    why_no_gpu,
)

__all__ = [
    "OLDEST_TOOLKIT",
    "TARGETS",
    "Device",
    "Target",
    "all_targets",
    "current_device",
    "gpu_available",
    "gpu_status",
    "target",
]

# The first whose ptxas knows mma.sync on e4m3; older ones are not tried.
OLDEST_TOOLKIT = (12, 4)

_KIB = 1024


@dataclass(frozen=True)
class Target:
    """What is true of every GPU that one compilation target runs on.

    Parameters
    ----------
    arch : str
        The target without its "sm_" prefix. Targets ending in "a" run on that architecture only
        and are what unlocks its own instructions.
    max_smem_per_cta, max_smem_per_sm : int
        Shared memory in bytes: the most that one CTA may ask for, and the capacity of an SM.
        (CUDA C++ Programming Guide, technical specifications per compute capability.)
    native_s4 : bool
        ``mma.sync`` on 4-bit integers is one instruction rather than an emulation.
    native_e4m3_mma : bool
        The same for ``mma.sync`` on float8 e4m3.
    min_toolkit : tuple of int
        Oldest CUDA toolkit whose NVRTC knows the target.
    """

    arch: str
    max_smem_per_cta: int
    max_smem_per_sm: int
    native_s4: bool
    native_e4m3_mma: bool
    min_toolkit: tuple[int, int]

    @property
    def has_e4m3(self) -> bool:
        """Whether there are products of float8 e4m3, of one kind or another."""
        return int(self.arch.rstrip("a")) >= 89


# The driver keeps 1 KiB of every CTA's shared memory for itself, hence the odd sizes.
TARGETS: dict[str, Target] = {
    t.arch: t
    for t in (
        Target("80", 163 * _KIB, 164 * _KIB, True, False, OLDEST_TOOLKIT),
        Target("86", 99 * _KIB, 100 * _KIB, True, False, OLDEST_TOOLKIT),
        Target("89", 99 * _KIB, 100 * _KIB, True, True, OLDEST_TOOLKIT),
        Target("90a", 227 * _KIB, 228 * _KIB, False, False, OLDEST_TOOLKIT),
        Target("100a", 227 * _KIB, 228 * _KIB, False, False, (12, 8)),
        Target("120a", 99 * _KIB, 100 * _KIB, False, True, (12, 8)),
    )
}

# Siblings that differ from a target in name and in the toolkit they need, not in what a plan asks.
_SIBLINGS: dict[str, tuple[str, tuple[int, int]]] = {
    "87": ("80", OLDEST_TOOLKIT),
    "103a": ("100a", (12, 9)),
    "110a": ("100a", (13, 0)),
    "121a": ("120a", (12, 9)),
}

# Compute capabilities whose target carries the "a"; the others compile for the plain number.
_OWN_INSTRUCTIONS = ("90", "100", "103", "110", "120", "121")


@dataclass(frozen=True)
class Device:
    """One GPU of this computer.

    Parameters
    ----------
    ordinal : int
        CUDA's device number.
    name : str
        Marketing name.
    compute_capability : str
        Without the dot, for example "90".
    arch : str
        The target that kernels are compiled for on it, for example "90a"; see `target`.
    num_sms : int
        Streaming multiprocessors.
    max_smem_per_cta, max_smem_per_sm : int
        Shared memory in bytes, as the driver reports it.
    """

    ordinal: int
    name: str
    compute_capability: str
    arch: str
    num_sms: int
    max_smem_per_cta: int
    max_smem_per_sm: int


_devices: dict[int, Device] = {}
forget_after_fork(_devices.clear)


def target(arch: str) -> Target:
    """Return the facts of a compilation target.

    Parameters
    ----------
    arch : str
        For example "80", "90a" or "sm_90a"; "90" means "90a".

    Raises
    ------
    ArgumentError
        If no kernel of this package is made for it.
    """
    name = arch.removeprefix("sm_")
    if name in _OWN_INSTRUCTIONS:
        name += "a"
    if name in TARGETS:
        return TARGETS[name]
    if name in _SIBLINGS:
        like, min_toolkit = _SIBLINGS[name]
        return replace(TARGETS[like], arch=name, min_toolkit=min_toolkit)
    raise ArgumentError("arch", arch, f"one of {_listed()}")


def all_targets() -> list[Target]:
    """Return the facts of every target that kernels of this package are made for, oldest first."""
    archs = sorted((*TARGETS, *_SIBLINGS), key=lambda arch: int(arch.rstrip("a")))
    return [target(arch) for arch in archs]


def gpu_status() -> tuple[str, str]:
    """Say whether a GPU can be used, without raising.

    Returns
    -------
    state : {"ok", "no-gpu", "no-cupy"}
    detail : str
        The number of GPUs, or why there is none.
    """
    try:
        cupy = import_cupy()
    except ImportError as error:
        return "no-cupy", f"{error}; {install_advice()}"
    except OSError as error:
        return "no-cupy", f"CuPy does not import: {error}; CUPY_CACHE_DIR chooses another folder"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        check_after_fork(cupy.cuda.runtime)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return "no-gpu", why_no_gpu(error)
    return ("ok", str(count)) if count else ("no-gpu", "0 devices")


@naming_keywords
def gpu_available() -> bool:
    """Say whether CuPy's current GPU can be used here, without raising.

    Returns
    -------
    bool
        False if there is no CuPy, driver or GPU, or one that is too old. Arrays in host memory do
        without; CUDA's own reasons are in what `cuattn info` prints.

    Notes
    -----
    This imports CuPy, and begins to use CUDA no more than a list of GPUs does. The compiler, which
    is needed for kernels that are not on disk yet, is not looked for.

    Examples
    --------
    >>> device = "cuda" if cuattn.gpu_available() else "cpu"
    """
    try:
        current_device()
    except (NoGPUError, UnsupportedError):
        return False
    return True


def current_device() -> Device:
    """Return the facts of CuPy's current device.

    Raises
    ------
    NoGPUError
        If there is no CuPy, no driver or no GPU.
    UnsupportedError
        If the GPU is older than compute capability 8.0 or unknown to this version, or CuPy too old.
    """
    runtime = _runtime()
    try:
        ordinal = runtime.getDevice()
        device = _devices.get(ordinal)
        if device is None:
            check_after_fork(runtime)
            device = _describe(ordinal, runtime.getDeviceProperties(ordinal))
            _devices[ordinal] = device
    except runtime.CUDARuntimeError as error:
        raise NoGPUError(f"no usable GPU: {why_no_gpu(error)}") from None
    return device


@cache
def _runtime() -> Any:
    try:
        cupy = import_cupy()
    except (ImportError, OSError):
        raise NoGPUError(f"no usable GPU: {gpu_status()[1]}") from None
    check_version(cupy)
    return cupy.cuda.runtime


def _listed() -> str:
    return ", ".join(f"sm_{known.arch}" for known in all_targets())


def _describe(ordinal: int, properties: dict[str, Any]) -> Device:
    name = properties["name"].decode()
    capability = f"{properties['major']}{properties['minor']}"
    try:
        arch = target(capability).arch
    except ArgumentError:
        raise UnsupportedError(
            f"{name} has compute capability {properties['major']}.{properties['minor']}; "
            f"this version has kernels for {_listed()}"
        ) from None
    return Device(
        ordinal=ordinal,
        name=name,
        compute_capability=capability,
        arch=arch,
        num_sms=properties["multiProcessorCount"],
        max_smem_per_cta=properties["sharedMemPerBlockOptin"],
        max_smem_per_sm=properties["sharedMemPerMultiprocessor"],
    )
