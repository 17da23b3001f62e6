"""Facts of a GPU that planning needs: of the one at hand, and of each target without one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..errors import ArgumentError, NoGPUError, UnsupportedError

__all__ = ["INSTALL", "TARGETS", "Device", "Target", "current_device", "gpu_status", "target"]

INSTALL = "pip install cuattn[cuda12], or cuattn[cuda13] if the driver is for CUDA 13"

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
        Target("80", 163 * _KIB, 164 * _KIB, True, False, (12, 0)),
        Target("86", 99 * _KIB, 100 * _KIB, True, False, (12, 0)),
        Target("89", 99 * _KIB, 100 * _KIB, True, True, (12, 0)),
        Target("90a", 227 * _KIB, 228 * _KIB, False, False, (12, 0)),
        Target("100a", 227 * _KIB, 228 * _KIB, False, False, (12, 8)),
        Target("120a", 99 * _KIB, 100 * _KIB, False, True, (12, 8)),
    )
}

# Siblings that differ from a target in name and in the toolkit they need, not in what a plan asks.
_SIBLINGS: dict[str, tuple[str, tuple[int, int]]] = {
    "87": ("80", (12, 0)),
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
    raise ArgumentError("arch", arch, f"one of {[*TARGETS, *_SIBLINGS]}")


def gpu_status() -> tuple[str, str]:
    """Say whether a GPU can be used, without raising.

    Returns
    -------
    state : {"ok", "no-gpu", "no-cupy"}
    detail : str
        The number of GPUs, or why there is none.
    """
    try:
        import cupy
    except ImportError as error:
        return "no-cupy", f"{error}; {INSTALL}"
    except OSError as error:
        # CuPy creates its cache folder on import, which a read-only home directory refuses.
        return "no-cupy", f"CuPy does not import: {error}; CUPY_CACHE_DIR chooses another folder"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return "no-gpu", str(error)
    return ("ok", str(count)) if count else ("no-gpu", "0 devices")


def current_device() -> Device:
    """Return the facts of CuPy's current device.

    Raises
    ------
    NoGPUError
        If there is no CuPy, no driver or no GPU.
    UnsupportedError
        If the GPU is older than compute capability 8.0 or unknown to this version.
    """
    runtime = _runtime()
    try:
        ordinal = runtime.getDevice()
    except runtime.CUDARuntimeError as error:
        raise NoGPUError(f"no usable GPU: {error}") from None
    device = _devices.get(ordinal)
    if device is None:
        device = _describe(ordinal, runtime.getDeviceProperties(ordinal))
        _devices[ordinal] = device
    return device


@cache
def _runtime() -> Any:
    try:
        from cupy.cuda import runtime
    except (ImportError, OSError):
        raise NoGPUError(gpu_status()[1]) from None
    return runtime


def _describe(ordinal: int, properties: dict[str, Any]) -> Device:
    name = properties["name"].decode()
    capability = f"{properties['major']}{properties['minor']}"
    try:
        arch = target(capability).arch
    except ArgumentError:
        raise UnsupportedError(
            f"{name} has compute capability {properties['major']}.{properties['minor']}; "
            f"this version has kernels for {[*TARGETS, *_SIBLINGS]}"
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
